//! To which addresses a message may go. A name in a configuration, or whoever answers for it in the DNS, must not turn the
//! monitor into a way into its own network, or to the credentials that a cloud hands out at a fixed address.
//!
//! It judges addresses only; who connects asks about the very address that it connects to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

/// IPv4 that is nobody's in public: first address, prefix length. IANA's special-purpose registry (RFC 6890), multicast, and the
/// former class E. The metadata services of the clouds are in 169.254.0.0/16 and 100.64.0.0/10.
const NOT_PUBLIC_V4: &[([u8; 4], u8)] = &[
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

/// The only IPv6 that is given out to the public. All else is loopback, local, mapped, multicast or not in use.
const PUBLIC_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Of these, what is not public: IANA's special-purpose registry. 2001::/23 has Teredo, which carries an IPv4 address inside, and
/// so has 2002::/16 (6to4).
const NOT_PUBLIC_V6: &[(Ipv6Addr, u8)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// Addresses with the same first bits, written `10.1.2.0/24`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    first: IpAddr,
    prefix: u8,
}

/// Not a network.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "{0:?} is not a network: write its first address and the length of its prefix, as in 10.1.2.0/24 or fd00:1::/64"
)]
pub struct NetworkError(String);

impl Network {
    /// Whether the address is in it. An IPv4 address that is mapped into IPv6 is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(address)) => same_prefix_v4(first, address, self.prefix),
            (IpAddr::V6(first), IpAddr::V6(address)) => same_prefix_v6(first, address, self.prefix),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Network, NetworkError> {
        let parse = || {
            let (first, prefix) = text.split_once('/')?;
            let (first, prefix): (IpAddr, u8) = (first.parse().ok()?, prefix.parse().ok()?);
            let bits_after_prefix_are_zero = match first {
                IpAddr::V4(first) => {
                    prefix <= 32 && first.to_bits().checked_shl(prefix.into()).unwrap_or(0) == 0
                }
                IpAddr::V6(first) => {
                    prefix <= 128 && first.to_bits().checked_shl(prefix.into()).unwrap_or(0) == 0
                }
            };
            bits_after_prefix_are_zero.then_some(Network { first, prefix })
        };
        parse().ok_or_else(|| NetworkError(text.into()))
    }
}

/// Whether it is an address of the public internet.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => !NOT_PUBLIC_V4
            .iter()
            .any(|(first, prefix)| same_prefix_v4(Ipv4Addr::from(*first), address, *prefix)),
        IpAddr::V6(address) => {
            same_prefix_v6(PUBLIC_V6.0, address, PUBLIC_V6.1)
                && !NOT_PUBLIC_V6.iter().any(|(first, prefix)| same_prefix_v6(*first, address, *prefix))
        }
    }
}

fn same_prefix_v4(a: Ipv4Addr, b: Ipv4Addr, prefix: u8) -> bool {
    (a.to_bits() ^ b.to_bits()).checked_shr(32 - u32::from(prefix)).unwrap_or(0) == 0
}

fn same_prefix_v6(a: Ipv6Addr, b: Ipv6Addr, prefix: u8) -> bool {
    (a.to_bits() ^ b.to_bits()).checked_shr(128 - u32::from(prefix)).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen to fail without `to_canonical`, and with each table left out.
    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        let check = |address: &str, expected: bool| {
            assert_eq!(is_public(address.parse().unwrap()), expected, "{address}");
        };
        for public in
            ["1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.15.255.255"]
        {
            check(public, true);
        }
        for public in ["172.32.0.0", "192.167.255.255", "223.255.255.255", "2606:4700::1111", "2a00::1"] {
            check(public, true);
        }
        for private in ["0.0.0.0", "10.0.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.255"] {
            check(private, false);
        }
        for private in ["169.254.169.254", "172.16.0.1", "172.31.255.255", "192.168.1.1", "192.0.0.192"] {
            check(private, false);
        }
        for private in ["198.18.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "fd00:ec2::254", "fe80::1"]
        {
            check(private, false);
        }
        // The private address inside another: mapped, compatible, NAT64, 6to4, Teredo.
        for private in
            ["::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::"]
        {
            check(private, false);
        }
        for private in ["2001:db8::1", "3fff::1", "ff02::1", "fec0::1", "5f00::1"] {
            check(private, false);
        }
        check("::ffff:1.1.1.1", true);
    }

    #[test]
    fn a_network_holds_the_addresses_with_its_prefix() {
        let check = |network: &str, address: &str, expected: bool| {
            let network: Network = network.parse().unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), expected, "{network:?} {address}");
        };
        check("10.1.2.0/24", "10.1.2.255", true);
        check("10.1.2.0/24", "::ffff:10.1.2.255", true);
        check("10.1.2.0/24", "10.1.3.0", false);
        check("127.0.0.1/32", "127.0.0.1", true);
        check("127.0.0.1/32", "127.0.0.2", false);
        check("0.0.0.0/0", "255.0.0.1", true);
        check("0.0.0.0/0", "::1", false);
        check("::1/128", "::1", true);
        check("fd00::/8", "fdff::1", true);
        check("fd00::/8", "fe00::1", false);
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for bad in
            ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.1/24", "::/129", "fd00::1/64", "a/8", "10.0.0.0/-1", "*"]
        {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
