//! Where a node is, as its user writes it: `http://host:8000`, perhaps with a path in front of the API's own.

use std::fmt;

use anyhow::{Context, bail};
use hyper::{
    Uri,
    http::uri::{Authority, PathAndQuery},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What a part of a path may not hold as it is.
const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':').remove(b'@');

/// The URL of a node, of a plain scheme.
#[derive(Debug, Clone)]
pub(super) struct NodeUrl {
    scheme: &'static str,
    authority: Authority,
    path: PathAndQuery,
}

impl NodeUrl {
    /// Reads a URL of this scheme, and says what to do about the secure one.
    pub(super) fn parse(text: &str, scheme: &'static str) -> anyhow::Result<Self> {
        let no_url = || format!("{text:?} is not a URL: it must be like {scheme}://127.0.0.1:8000");
        let parts = text.trim().parse::<Uri>().with_context(no_url)?.into_parts();
        let (Some(found), Some(authority)) = (parts.scheme, parts.authority) else { bail!(no_url()) };
        if found.as_str() == format!("{scheme}s") {
            bail!(
                "this command speaks {scheme}:// only, not TLS: name the node itself ({scheme}://host:8000), not what stands in front of it"
            );
        }
        if found.as_str() != scheme || authority.host().is_empty() {
            bail!("{text:?} must be like {scheme}://127.0.0.1:8000");
        }
        let path = parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Self { scheme, authority, path })
    }

    /// What stands below it, each part escaped.
    pub(super) fn join(&self, parts: &[&str]) -> anyhow::Result<Self> {
        let mut path = self.path.path().trim_end_matches('/').to_owned();
        for part in parts {
            path.push('/');
            path.extend(utf8_percent_encode(part, ESCAPED));
        }
        let path = PathAndQuery::try_from(path).with_context(|| format!("{self} cannot have that path below it"))?;
        Ok(Self { path, ..self.clone() })
    }
}

impl fmt::Display for NodeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_into_the_path() {
        let check = |base: &str, path: &[&str], expected: &str| {
            assert_eq!(NodeUrl::parse(base, "http").unwrap().join(path).unwrap().to_string(), expected);
        };
        check(
            "http://a:8000",
            &["v1", "groups", "a/b ?#%ü", "messages"],
            "http://a:8000/v1/groups/a%2Fb%20%3F%23%25%C3%BC/messages",
        );
        check("http://a:8000/roost/", &["v1", "x"], "http://a:8000/roost/v1/x");
        check("http://[::1]:8000/?x", &["v1"], "http://[::1]:8000/v1");
    }

    #[test]
    fn urls_are_shown_as_they_were_given() {
        assert_eq!(NodeUrl::parse("ws://a/ws?x=1", "ws").unwrap().to_string(), "ws://a/ws?x=1");
        assert_eq!(NodeUrl::parse("http://a:8000", "http").unwrap().to_string(), "http://a:8000/");
    }

    #[test]
    fn urls_that_will_not_do_are_explained() {
        for (url, says) in [
            ("https://a", "not TLS"),
            ("a:8000", "must be like"),
            ("nonsense", "not a URL"),
            ("http://", "not a URL"),
            ("http://:80", "must be like"),
            ("ws://a", "must be like"),
        ] {
            let error = format!("{:#}", NodeUrl::parse(url, "http").unwrap_err());
            assert!(error.contains(says), "{url}: {error}");
        }
    }
}
