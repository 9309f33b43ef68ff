//! The PROXY protocol, versions 1 and 2: what a proxy that passes on bytes says before them of whom it does so for. It is read by
//! hand, since nothing may be read beyond it: what follows is another's (TLS, HTTP).

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use tokio::{io::AsyncReadExt, net::TcpStream};

/// With its line's end.
const LINE_MAX_BYTES: usize = 107;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, command, family, and the length of what follows.
const HEAD_BYTES: usize = 16;
/// Addresses, and what else a proxy may have to say (TLS, names).
const BODY_MAX_BYTES: usize = 2_048;

/// Reads it: the client's address, or nothing where the proxy speaks for itself or cannot tell. Waits for all of it.
///
/// # Errors
/// The socket's, and `InvalidData` where it is none.
pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Option<IpAddr>> {
    let mut header = Vec::with_capacity(HEAD_BYTES);
    loop {
        let missing = match missing(&header)? {
            0 => return of(&header),
            missing => missing,
        };
        let begin = header.len();
        header.resize(begin + missing, 0);
        stream.read_exact(&mut header[begin..]).await?;
    }
}

/// How many bytes are surely missing of a header that begins so. A line is read byte by byte from where its end may be.
fn missing(header: &[u8]) -> io::Result<usize> {
    let begins = |with: &[u8]| header.iter().zip(with).all(|(one, other)| one == other);
    if header.is_empty() {
        // Neither version has a shorter one.
        return Ok(SIGNATURE.len());
    }
    if begins(SIGNATURE) {
        let Some(length) = header.get(14..HEAD_BYTES) else { return Ok(HEAD_BYTES - header.len()) };
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if length > BODY_MAX_BYTES {
            return Err(wrong("it is too long"));
        }
        return Ok((HEAD_BYTES + length).saturating_sub(header.len()));
    }
    if !begins(b"PROXY ") {
        return Err(wrong("there is none"));
    }
    match header {
        [.., b'\r', b'\n'] => Ok(0),
        _ if header.len() >= LINE_MAX_BYTES => Err(wrong("its line has no end")),
        _ => Ok(1),
    }
}

/// What a whole header says.
fn of(header: &[u8]) -> io::Result<Option<IpAddr>> {
    if let Some(line) = header.strip_suffix(b"\r\n").filter(|_| header.starts_with(b"PROXY ")) {
        let line = std::str::from_utf8(line).map_err(|_| wrong("its line is not ASCII"))?;
        return of_line(line);
    }
    let (head, body) = header.split_at_checked(HEAD_BYTES).ok_or_else(|| wrong("it is too short"))?;
    if !head.starts_with(SIGNATURE) {
        return Err(wrong("there is none"));
    }
    match (head[12], head[13]) {
        // The proxy itself asks, for a health check.
        (0x20, _) => Ok(None),
        (0x21, 0x11) => {
            let address: [u8; 4] = body
                .get(..4)
                .filter(|_| body.len() >= 12)
                .and_then(|at| at.try_into().ok())
                .ok_or_else(|| wrong("its addresses are cut off"))?;
            Ok(Some(Ipv4Addr::from(address).into()))
        }
        (0x21, 0x21) => {
            let address: [u8; 16] = body
                .get(..16)
                .filter(|_| body.len() >= 36)
                .and_then(|at| at.try_into().ok())
                .ok_or_else(|| wrong("its addresses are cut off"))?;
            Ok(Some(IpAddr::from(Ipv6Addr::from(address)).to_canonical()))
        }
        // UNIX sockets, and what a proxy cannot tell.
        (0x21, _) => Ok(None),
        _ => Err(wrong("its version or its command is unknown")),
    }
}

fn of_line(line: &str) -> io::Result<Option<IpAddr>> {
    let parts: Vec<&str> = line.split(' ').collect();
    let address = match parts[..] {
        ["PROXY", "UNKNOWN", ..] => return Ok(None),
        ["PROXY", "TCP4", from, to, from_port, to_port] if to.parse::<Ipv4Addr>().is_ok() => {
            from.parse::<Ipv4Addr>().ok().map(IpAddr::from).filter(|_| are_ports(from_port, to_port))
        }
        ["PROXY", "TCP6", from, to, from_port, to_port] if to.parse::<Ipv6Addr>().is_ok() => {
            from.parse::<Ipv6Addr>().ok().map(IpAddr::from).filter(|_| are_ports(from_port, to_port))
        }
        _ => None,
    };
    address.map(|address| Some(address.to_canonical())).ok_or_else(|| wrong("its line cannot be read"))
}

fn are_ports(one: &str, other: &str) -> bool {
    one.parse::<u16>().is_ok() && other.parse::<u16>().is_ok()
}

fn wrong(why: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("no header of the PROXY protocol: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body].concat()
    }

    /// Reads it of a socket on which something follows, which has to stay there.
    async fn read_of(header: &[u8]) -> io::Result<Option<IpAddr>> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        client.write_all(header).await.unwrap();
        client.write_all(b"GET /").await.unwrap();
        client.shutdown().await.unwrap();
        let found = read(&mut stream).await?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"GET /");
        Ok(found)
    }

    #[tokio::test]
    async fn both_versions_tell_the_client() {
        let ports = [0, 80, 0, 81];
        let v4 = [&[203, 0, 113, 9, 10, 0, 0, 1][..], &ports].concat();
        let v6 = [&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets()[..], &[0; 16], &ports].concat();
        let more = [&v4[..], &[4, 0, 2, 0, 0]].concat();
        for (header, wanted) in [
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 80\r\n".to_vec(), Some("203.0.113.9")),
            (b"PROXY TCP6 2001:db8::1 fd00::1 4711 80\r\n".to_vec(), Some("2001:db8::1")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (v2(0x21, 0x11, &v4), Some("203.0.113.9")),
            (v2(0x21, 0x11, &more), Some("203.0.113.9")),
            (v2(0x21, 0x21, &v6), Some("2001:db8::1")),
            (v2(0x20, 0, &[]), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ] {
            let found = read_of(&header).await.unwrap();
            assert_eq!(found, wanted.map(|text| text.parse().unwrap()), "{header:?}");
        }
    }

    #[tokio::test]
    async fn what_is_none_is_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LINE_MAX_BYTES));
        for header in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.9 10.0.0.1 4711\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::1 10.0.0.1 4711 80\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 99999\r\n".to_vec(),
            long.into_bytes(),
            v2(0x21, 0x11, &[0; 4]),
            v2(0x11, 0x11, &[0; 12]),
            [&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat(),
            Vec::new(),
        ] {
            assert!(read_of(&header).await.is_err(), "{header:?}");
        }
    }

    proptest! {
        /// Whatever a proxy sends, it is read or refused, and never more than the bound is asked for.
        #[test]
        fn any_bytes_are_read_or_refused(begin in 0..3_usize, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let header = [[&b""[..], b"PROXY ", SIGNATURE][begin], &bytes].concat();
            drop(of(&header));
            if let Ok(more) = missing(&header[..header.len().min(LINE_MAX_BYTES)]) {
                prop_assert!(more <= HEAD_BYTES + BODY_MAX_BYTES);
            }
        }
    }
}
