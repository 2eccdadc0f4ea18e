//! Where a request may come from.

use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::token::take;

/// A range of addresses, written as an address or in CIDR notation: `10.0.0.7`, `10.0.0.0/8`, `2001:db8::/32`.
///
/// An IPv4 address that came in through an IPv6 socket (`::ffff:10.0.0.7`) is an IPv4 address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PeerRange {
    /// All bits past the prefix are zero, and it is no IPv4 address in the clothes of IPv6.
    network: IpAddr,
    /// Bits.
    prefix: u8,
}

impl PeerRange {
    fn new(network: IpAddr, prefix: u8) -> Option<Self> {
        let whole = prefix <= width(network) && masked(network, prefix) == network;
        (whole && network.to_canonical() == network).then_some(Self { network, prefix })
    }

    /// Is the address in the range?
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        width(address) == width(self.network) && masked(address, self.prefix) == self.network
    }

    /// As a token says it: which kind of address, the address, the length of the prefix.
    pub(crate) fn write(range: Option<Self>, to: &mut Vec<u8>) {
        let Some(Self { network, prefix }) = range else { return to.push(0) };
        match network {
            IpAddr::V4(network) => {
                to.push(4);
                to.extend(network.octets());
            }
            IpAddr::V6(network) => {
                to.push(6);
                to.extend(network.octets());
            }
        }
        to.push(prefix);
    }

    #[expect(clippy::option_option, reason = "whether it can be read, and whether there is one")]
    pub(crate) fn read(from: &mut &[u8]) -> Option<Option<Self>> {
        let [kind] = *take(from)?;
        let network = match kind {
            0 => return Some(None),
            4 => IpAddr::V4(Ipv4Addr::from_octets(*take(from)?)),
            6 => IpAddr::V6(Ipv6Addr::from_octets(*take(from)?)),
            _ => return None,
        };
        let [prefix] = *take(from)?;
        Self::new(network, prefix).map(Some)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let past = |width: u32| width.saturating_sub(prefix.into());
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(past(32)).unwrap_or_default();
            IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(past(128)).unwrap_or_default();
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    }
}

impl FromStr for PeerRange {
    type Err = PeerRangeError;

    fn from_str(text: &str) -> Result<Self, PeerRangeError> {
        let error = || PeerRangeError { seen: text.to_owned() };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let prefix = match prefix {
            None => width(address),
            // Only digits: a number may not have a sign.
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| error())?
            }
            Some(_) => return Err(error()),
        };
        Self::new(address, prefix).ok_or_else(error)
    }
}

impl fmt::Display for PeerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// This is no range of addresses.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerRangeError {
    seen: String,
}

impl fmt::Display for PeerRangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = &self.seen;
        write!(
            f,
            "{seen:?} is no range of addresses; write it like 10.0.0.7, 10.0.0.0/8 or 2001:db8::/32, "
        )?;
        f.write_str("with no bit set past the prefix, and IPv4 as IPv4")
    }
}

impl Error for PeerRangeError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> PeerRange {
        text.parse().expect("it is a range")
    }

    #[test]
    fn a_range_holds_what_its_prefix_says() {
        for (text, inside, outside) in [
            ("10.1.0.0/16", "10.1.255.255", "10.2.0.0"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.2"),
            ("0.0.0.0/0", "255.0.0.1", "::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("2001:db8::/33", "2001:db8:7fff::", "2001:db8:8000::"),
            ("127.0.0.0/8", "::ffff:127.0.0.1", "::1"),
        ] {
            assert!(range(text).contains(inside.parse().expect("an address")), "{text} {inside}");
            assert!(
                !range(text).contains(outside.parse().expect("an address")),
                "{text} {outside}"
            );
        }
    }

    #[test]
    fn what_is_no_range_is_refused_by_name() {
        for text in [
            "",
            "/",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "::/129",
            "localhost",
            "::ffff:10.0.0.0/104",
            "10.0.0/8",
        ] {
            let error = text.parse::<PeerRange>().expect_err("it is none").to_string();
            assert!(
                error.contains(&format!("{text:?}")) && error.contains("10.0.0.0/8"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_range_reads_back_as_it_was_written() {
        for text in ["10.0.0.0/8", "10.1.2.3/32", "2001:db8::/32", "::/0", "::1/128"] {
            assert_eq!(range(text).to_string(), text);
            let mut bytes = Vec::new();
            PeerRange::write(Some(range(text)), &mut bytes);
            let mut rest = &bytes[..];
            assert_eq!(PeerRange::read(&mut rest), Some(Some(range(text))));
            assert!(rest.is_empty());
        }
    }
}
