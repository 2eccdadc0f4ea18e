//! The keys that bypass tokens are signed with.

use std::{error::Error, fmt};

use hmac::{Hmac, KeyInit, Mac as _};
use sha2::Sha256;

use crate::token::{Mac, is_key_id};

/// Fewer bytes than the hash has add up to fewer guesses than the hash is worth.
const MIN_SECRET: usize = 32;

/// The keys of a service: the first signs, all of them are good for checking.
///
/// To change a key, put the new one before the old one everywhere, and take the old one out when the last
/// token that it signed has expired.
///
/// What is kept of a secret is overwritten when it is dropped, and shown nowhere. The text that it was read
/// from is the caller's.
#[derive(Clone)]
pub struct TokenKeys {
    /// At least one.
    keys: Vec<Key>,
}

#[derive(Clone)]
pub(crate) struct Key {
    id: String,
    /// The hash after the key, which is all that is needed of it.
    keyed: Hmac<Sha256>,
}

impl TokenKeys {
    /// One key. Its id is public: it stands in every token.
    ///
    /// # Errors
    /// If the id is none, or the secret has less than 32 bytes.
    pub fn new(id: &str, secret: &[u8]) -> Result<Self, KeyError> {
        Ok(Self {
            keys: vec![Key::new(id, secret).map_err(|fault| KeyError { line: None, fault })?],
        })
    }

    /// Reads keys as a file or a variable holds them: `ID:SECRET`, one a line, the one that signs first.
    /// Blank lines and lines that begin with `#` are passed over, and so is space around a line.
    ///
    /// The secret is the text after the first colon as it stands, 32 bytes or more; `openssl rand -hex 32`
    /// makes a good one.
    ///
    /// # Errors
    /// If a line is no key, if two have the same id, or if there is none. The error says which line, and
    /// nothing of what it holds.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut keys: Vec<Key> = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let at = |fault| KeyError { line: Some(line), fault };
            let (id, secret) = text.split_once(':').ok_or(at(Fault::NoColon))?;
            if secret.contains(|c: char| c.is_whitespace() || c.is_control()) {
                return Err(at(Fault::Space));
            }
            let key = Key::new(id, secret.as_bytes()).map_err(at)?;
            if keys.iter().any(|other| other.id == key.id) {
                return Err(at(Fault::Twice));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(KeyError { line: None, fault: Fault::None });
        }
        Ok(Self { keys })
    }

    pub(crate) fn first(&self) -> &Key {
        &self.keys[0]
    }

    /// Ids are no secret: how long this takes tells nothing that a token does not.
    pub(crate) fn named(&self, id: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.id == id)
    }
}

impl Key {
    fn new(id: &str, secret: &[u8]) -> Result<Self, Fault> {
        if !is_key_id(id) {
            return Err(Fault::Id);
        }
        if secret.len() < MIN_SECRET {
            return Err(Fault::Short(secret.len()));
        }
        // Keys of any length are taken; this never fails.
        let keyed = Hmac::new_from_slice(secret).map_err(|_| Fault::Short(secret.len()))?;
        Ok(Self { id: id.to_owned(), keyed })
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn sign(&self, parts: &[&[u8]]) -> Mac {
        self.after(parts).finalize().into_bytes().into()
    }

    /// Takes the same time wherever the first difference is.
    pub(crate) fn has_signed(&self, parts: &[&[u8]], mac: &Mac) -> bool {
        self.after(parts).verify_slice(mac).is_ok()
    }

    fn after(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        parts.iter().fold(self.keyed.clone(), hmac::Mac::chain_update)
    }
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<&str> = self.keys.iter().map(Key::id).collect();
        f.debug_struct("TokenKeys").field("ids", &ids).finish_non_exhaustive()
    }
}

/// Why this is no key. Says nothing of what was read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KeyError {
    /// From 1; `None` where there are no lines, or none that is at fault.
    line: Option<usize>,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    None,
    NoColon,
    Space,
    Id,
    /// The length of the secret, in bytes.
    Short(usize),
    Twice,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        match self.fault {
            Fault::None => f.write_str(
                "there is no key; write one a line as ID:SECRET, with a secret of `openssl rand -hex 32`",
            ),
            Fault::NoColon => f.write_str("this is no key; write it as ID:SECRET"),
            Fault::Space => f.write_str("there is a space in the secret, or a character like it"),
            Fault::Id => f.write_str(
                "the id, before the colon, has to be 1 to 32 letters, digits, dots, underscores or \
                 hyphens",
            ),
            Fault::Short(bytes) => write!(
                f,
                "the secret has {bytes} bytes and needs {MIN_SECRET}, or it can be guessed; \
                 `openssl rand -hex 32` makes a good one"
            ),
            Fault::Twice => f.write_str("a key with this id is there already"),
        }
    }
}

impl Error for KeyError {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::token::{BypassToken, TokenRefusal};

    const OLD: &str = "old:0123456789abcdef0123456789abcdef";
    const NEW: &str = "new:fedcba9876543210fedcba9876543210";

    fn keys(text: &str) -> TokenKeys {
        TokenKeys::parse(text).expect("they are keys")
    }

    fn token(keys: &TokenKeys) -> String {
        BypassToken::lasting(Duration::from_secs(60), "run").mint(keys).expect("a token")
    }

    #[test]
    fn a_key_is_changed_without_a_gap() {
        let steps =
            [OLD.to_owned(), format!("{NEW}\n{OLD}\n"), NEW.to_owned()].map(|text| keys(&text));
        let signed = [token(&steps[0]), token(&steps[1])];
        let good = |step: usize, token: usize| {
            steps[step].authenticate(signed[token].as_bytes()).map(drop)
        };
        assert_eq!([good(0, 0), good(1, 0), good(1, 1), good(2, 1)], [Ok(()); 4]);
        assert_eq!([good(0, 1), good(2, 0)], [Err(TokenRefusal::Forged); 2]);
    }

    #[test]
    fn blank_lines_comments_and_space_around_lines_are_passed_over() {
        let read = keys(&format!("# since May\r\n\r\n  {NEW} \t\r\n#\n{OLD}"));
        assert_eq!(read.first().id(), "new");
        assert!(read.authenticate(token(&keys(OLD)).as_bytes()).is_ok());
        // A colon is one of the characters that a secret may have.
        assert!(TokenKeys::parse("k:0123456789abcdef:0123456789abcdef").is_ok());
    }

    #[test]
    fn what_is_no_key_is_refused_by_its_line_and_none_of_it_is_told() {
        let secret = "s3cr3t-s3cr3t-s3cr3t-s3cr3t-s3cr";
        for (text, named) in [
            (String::new(), "ID:SECRET"),
            ("# nothing\n".to_owned(), "there is no key"),
            (secret.to_owned(), "line 1: this is no key"),
            (format!("\n:{secret}"), "line 2: the id"),
            (format!("{secret}-longer:ci"), "the id"),
            (format!("{secret}:ci"), "has 2 bytes and needs 32"),
            (format!("ci:{}", &secret[1..]), "has 31 bytes and needs 32"),
            ("ci:".to_owned(), "openssl rand -hex 32"),
            (format!("ci:{secret} {secret}"), "space"),
            (format!("{OLD}\nold:{secret}"), "line 2: a key with this id"),
        ] {
            let error = TokenKeys::parse(&text).expect_err("it is none");
            let said = format!("{error} {error:?}");
            assert!(said.contains(named), "{said}");
            assert!(!said.contains("s3cr3t"), "{said}");
        }
        assert!(TokenKeys::new("ci", &[0; 31]).is_err());
        assert!(TokenKeys::new("ci", &[0; 32]).is_ok());
    }

    #[test]
    fn keys_show_their_ids_alone() {
        let shown = format!("{:?}", keys(&format!("{NEW}\n{OLD}")));
        assert_eq!(shown, "TokenKeys { ids: [\"new\", \"old\"], .. }");
    }
}
