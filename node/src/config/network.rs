//! Addresses as operators write them: one (`10.0.0.7`), or a network of them (`10.0.0.0/8`, `fd00::/8`).

use std::net::IpAddr;

/// A network; a single address is one of those, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    address: u128,
    is_v4: bool,
    /// The bits that do not count.
    host_bits: u32,
}

impl Network {
    /// Reads one, or says what it should be.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("must be an IP address or a network like 10.0.0.0/8, it is {text:?}");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address = address.parse::<IpAddr>().map_err(|_| wrong())?.to_canonical();
        let (bits, is_v4) = bits_of(address);
        let longest = if is_v4 { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix.parse().ok().filter(|prefix| *prefix <= longest).ok_or_else(wrong)?,
            None => longest,
        };
        Ok(Self { address: bits, is_v4, host_bits: longest - prefix })
    }

    /// Whether the address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (bits, is_v4) = bits_of(address.to_canonical());
        let network = |bits: u128| bits.checked_shr(self.host_bits).unwrap_or(0);
        is_v4 == self.is_v4 && network(bits) == network(self.address)
    }
}

fn bits_of(address: IpAddr) -> (u128, bool) {
    match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), true),
        IpAddr::V6(address) => (address.to_bits(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_its_network_and_in_no_other() {
        let check = |network: &str, address: &str, inside: bool| {
            let found = Network::parse(network).unwrap().contains(address.parse().unwrap());
            assert_eq!(found, inside, "{address} in {network}");
        };
        check("10.0.0.0/8", "10.255.0.1", true);
        check("10.0.0.0/8", "11.0.0.1", false);
        check("10.0.0.7", "10.0.0.7", true);
        check("10.0.0.7", "10.0.0.6", false);
        check("10.0.0.7", "::ffff:10.0.0.7", true);
        check("0.0.0.0/0", "203.0.113.9", true);
        check("0.0.0.0/0", "2001:db8::1", false);
        check("::/0", "2001:db8::1", true);
        check("fd00::/8", "fd12::1", true);
        check("fd00::/8", "fe80::1", false);
    }

    #[test]
    fn what_is_none_is_told() {
        for text in ["", "10.0.0.0/33", "fd00::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/-1", "proxy.example.com"] {
            assert!(Network::parse(text).unwrap_err().contains("10.0.0.0/8"), "{text}");
        }
    }
}
