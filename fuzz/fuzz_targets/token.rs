//! The parser of bypass tokens, fed with texts that anybody may send, and with bodies that a key has signed.

#![no_main]

use std::sync::LazyLock;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use libfuzzer_sys::fuzz_target;
use parallax_middleware::{BypassToken, TokenKeys, TokenRefusal};
use sha2::Sha256;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

static KEYS: LazyLock<TokenKeys> = LazyLock::new(|| TokenKeys::new("k1", SECRET).unwrap());

/// What is accepted is exactly what minting makes.
fn has_one_text(token: &BypassToken, text: &[u8]) {
    assert_eq!(token.mint(&KEYS).unwrap().as_bytes(), text);
}

/// A token of this body, as whoever has the key could make it.
fn signed(body: &[u8]) -> String {
    let keyed = Hmac::<Sha256>::new_from_slice(SECRET).unwrap();
    let mac = keyed.chain_update(b"px1.").chain_update(body).finalize().into_bytes();
    format!("px1.{}", BASE64_URL_SAFE_NO_PAD.encode([body, &mac].concat()))
}

fuzz_target!(|data: &[u8]| {
    // Without the key, whatever it is.
    if let Ok(token) = KEYS.authenticate(data) {
        has_one_text(&token, data);
    }
    let encoded = format!("px1.{}", BASE64_URL_SAFE_NO_PAD.encode(data));
    if let Ok(token) = KEYS.authenticate(encoded.as_bytes()) {
        has_one_text(&token, encoded.as_bytes());
    }

    // With it: past the MAC, the body still has to be one.
    let text = signed(data);
    match KEYS.authenticate(text.as_bytes()) {
        Ok(token) => has_one_text(&token, text.as_bytes()),
        Err(refusal) => {
            // Forged, if the body names another key.
            assert!(matches!(refusal, TokenRefusal::Malformed | TokenRefusal::Forged));
        }
    }
});
