//! Whom a proxy forwards for, as it says in the request's head (`X-Forwarded-For`, or `Forwarded` of RFC 7239).
//!
//! Anybody can send such a header. Each proxy adds to its right end what it sees itself, so it is read from there: past the proxies that are
//! trusted, the first other address is the client's, and what stands left of it was said by the client. Which of the two headers counts is
//! configured (`node.proxy_header`): a proxy that writes one of them passes on what a client says in the other.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, header};

use crate::config::{Network, ProxyHeader};

/// Proxies in a row; more are not looked at.
const HOPS_MAX: usize = 16;
const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// The client's own address; nothing where the proxies do not tell it.
pub fn client(headers: &HeaderMap, which: ProxyHeader, proxies: &[Network]) -> Option<IpAddr> {
    let name = match which {
        ProxyHeader::XForwardedFor => X_FORWARDED_FOR,
        ProxyHeader::Forwarded => header::FORWARDED.as_str(),
        ProxyHeader::ProxyProtocol => return None,
    };
    let mut hops = 0;
    for line in headers.get_all(name).into_iter().rev() {
        for element in from_the_right(line.as_bytes(), which) {
            hops += 1;
            // What stands left of it may be anything, since its client wrote it.
            let element = str::from_utf8(element).ok()?;
            let address = match which {
                ProxyHeader::Forwarded => for_of(element).and_then(|text| address(&text)),
                _ => address(element),
            };
            // Who stands behind an address that is not told cannot be known.
            let address = address.filter(|_| hops <= HOPS_MAX)?;
            if !proxies.iter().any(|proxy| proxy.contains(address)) {
                return Some(address);
            }
        }
    }
    None
}

/// The parts of a list, the last one first, each when it is asked for. A comma in a quotation divides nothing; what a proxy
/// has added is whole, whatever a client left open before it.
fn from_the_right(line: &[u8], which: ProxyHeader) -> impl Iterator<Item = &[u8]> {
    let (mut left, has_quotations) = (Some(line), which == ProxyHeader::Forwarded);
    std::iter::from_fn(move || {
        let (all, mut quoted) = (left?, false);
        let comma = all.iter().rposition(|byte| {
            quoted ^= has_quotations && *byte == b'"';
            *byte == b',' && !quoted
        });
        left = comma.map(|at| &all[..at]);
        Some(comma.map_or(all, |at| &all[at + 1..]))
    })
}

/// Splits outside of quotations.
fn split(text: &str, at: char) -> Option<Vec<&str>> {
    let (mut parts, mut begin, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (index, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if character == at && !quoted => {
                parts.push(&text[begin..index]);
                begin = index + character.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    (!quoted).then_some(parts)
}

/// The value of the only `for` in an element.
fn for_of(element: &str) -> Option<String> {
    let pairs = split(element, ';')?;
    let mut found = pairs.into_iter().filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim())
    });
    let value = found.next()?;
    if found.next().is_some() {
        return None;
    }
    match value.strip_prefix('"') {
        // No address has anything to escape.
        Some(quoted) => quoted.strip_suffix('"').filter(|text| !text.contains(['"', '\\'])).map(str::to_owned),
        None => Some(value.to_owned()),
    }
}

/// An address, perhaps with a port; one of IPv6 may stand in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).filter(|text| text.contains(':'));
    let parsed = bare.unwrap_or(text).parse::<IpAddr>().ok();
    parsed.or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip())).map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn check(which: ProxyHeader, name: &'static str, lines: &[&str], wanted: Option<&str>) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(line).unwrap());
        }
        let proxies = ["10.0.0.0/8", "fd00::/8"].map(|text| Network::parse(text).unwrap());
        let wanted = wanted.map(|text| text.parse().unwrap());
        assert_eq!(client(&headers, which, &proxies), wanted, "{lines:?}");
    }

    #[test]
    fn the_first_from_the_right_that_is_no_proxy_is_the_client() {
        let check = |lines: &[&str], wanted| check(ProxyHeader::XForwardedFor, X_FORWARDED_FOR, lines, wanted);
        check(&["203.0.113.9"], Some("203.0.113.9"));
        check(&["203.0.113.9, 10.0.0.1"], Some("203.0.113.9"));
        check(&["203.0.113.9:4711"], Some("203.0.113.9"));
        check(&["[2001:db8::1]:4711,fd00::1"], Some("2001:db8::1"));
        check(&["2001:db8::1"], Some("2001:db8::1"));
        check(&["[2001:db8::1]"], Some("2001:db8::1"));
        check(&["::ffff:203.0.113.9"], Some("203.0.113.9"));
        // What a client says itself stands left of what its proxy saw.
        check(&["198.51.100.1, 203.0.113.9"], Some("203.0.113.9"));
        check(&["198.51.100.1", "203.0.113.9, 10.0.0.1"], Some("203.0.113.9"));
        check(&["203.0.113.9", "10.0.0.1"], Some("203.0.113.9"));
        check(&["10.0.0.7, 203.0.113.9"], Some("203.0.113.9"));
        // Nor does it hide the client that this is no text.
        check(&["\u{e9}, 203.0.113.9"], Some("203.0.113.9"));
        check(&["\u{e9}", "203.0.113.9"], Some("203.0.113.9"));
    }

    #[test]
    fn what_does_not_tell_an_address_tells_none() {
        let check = |lines: &[&str]| check(ProxyHeader::XForwardedFor, X_FORWARDED_FOR, lines, None);
        check(&[]);
        check(&[""]);
        check(&["10.0.0.1"]);
        check(&["203.0.113.9, unknown"]);
        check(&["203.0.113.9, "]);
        check(&["203.0.113.9, 10.0.0.1.example"]);
        check(&["[203.0.113.9]"]);
        check(&["203.0.113.9\u{e9}"]);
        let many = format!("203.0.113.9{}", ", 10.0.0.1".repeat(HOPS_MAX));
        check(&[&many]);
    }

    #[test]
    fn forwarded_has_quotations_and_names() {
        let check = |lines: &[&str], wanted| check(ProxyHeader::Forwarded, "forwarded", lines, wanted);
        check(&["for=203.0.113.9;proto=https;by=10.0.0.1"], Some("203.0.113.9"));
        check(&["proto=https; For=\"[2001:db8::1]:4711\""], Some("2001:db8::1"));
        check(&["for=198.51.100.1, for=203.0.113.9, for=10.0.0.1"], Some("203.0.113.9"));
        check(&["for=198.51.100.1;host=\"a,for=192.0.2.1\""], Some("198.51.100.1"));
        check(&["for=203.0.113.9, for=unknown"], None);
        check(&["for=203.0.113.9, for=_hidden"], None);
        check(&["for=203.0.113.9;for=192.0.2.1"], None);
        check(&["for=\"203.0.113.9"], None);
        // What a client left open ends before what its proxy added.
        check(&["for=\"x, for=203.0.113.9"], Some("203.0.113.9"));
        check(&["for=\"x, for=\"[2001:db8::1]:4711\""], Some("2001:db8::1"));
        check(&["for=198.51.100.1", "proto=https"], None);
    }

    #[test]
    fn the_other_header_is_not_looked_at() {
        check(ProxyHeader::Forwarded, X_FORWARDED_FOR, &["203.0.113.9"], None);
        check(ProxyHeader::XForwardedFor, "forwarded", &["for=203.0.113.9"], None);
        check(ProxyHeader::ProxyProtocol, X_FORWARDED_FOR, &["203.0.113.9"], None);
    }
}
