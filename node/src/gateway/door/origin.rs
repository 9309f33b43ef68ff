//! Where a connection's session comes from when it is not in `hello`, and whether a browser page may use its cookie.
//!
//! A browser sends a site's cookies with a WebSocket that any other site opens, and lets scripts read the answers. So a
//! cookie counts only where the page's origin is this very host, or one of those that the configuration lists; compared
//! whole, never by suffix. The other ways to bring a token need a script that has it, which no foreign page does.

use axum::http::{HeaderMap, header};

/// What a request brought along. The URL is not among it: URLs end up in logs.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// `Authorization: Bearer …`.
    pub bearer: Option<String>,
    /// The session cookie.
    pub cookie: Option<String>,
    /// The page's origin may use the cookie.
    pub origin_allowed: bool,
}

impl std::fmt::Debug for Credentials {
    /// Without the tokens.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("origin_allowed", &self.origin_allowed).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads them out of a request's headers.
    pub fn of(headers: &HeaderMap, cookie_name: &str, allowed_origins: &[String]) -> Self {
        Self {
            bearer: bearer(headers),
            cookie: cookie(headers, cookie_name),
            origin_allowed: origin_allowed(headers, allowed_origins),
        }
    }
}

/// The token of `Authorization: Bearer …`.
pub fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
}

/// The first cookie of this name that is not empty.
pub fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(|cookies| cookies.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .find(|(key, value)| *key == name && !value.is_empty())
        .map(|(_, value)| value.to_owned())
}

/// Whether the request comes from no browser, from a page of this host, or from one of the `allowed` origins (`*`: any). A browser
/// names the origin of each page that opens a WebSocket, or that is to read the answer from another origin.
pub fn origin_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let Some(origin) = origins.next() else { return is_of_no_other_site(headers) };
    let (Ok(origin), None) = (origin.to_str(), origins.next()) else { return false };
    if is_listed(origin, allowed) {
        return true;
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    match (origin.split_once("://"), host) {
        (Some((scheme, authority)), Some(host)) => {
            let port = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
            let bare = |authority: &str| authority.strip_suffix(port).unwrap_or(authority).to_ascii_lowercase();
            !authority.is_empty() && bare(authority) == bare(host)
        }
        _ => false,
    }
}

/// Whether an origin is one of those that the configuration lists (`*`: any).
pub fn is_listed(origin: &str, allowed: &[String]) -> bool {
    allowed.iter().any(|allowed| allowed == "*" || allowed.trim_end_matches('/').eq_ignore_ascii_case(origin))
}

/// A browser that names no origin says by this that another site's page asks, though it would not let that read the answer.
fn is_of_no_other_site(headers: &HeaderMap) -> bool {
    headers.get_all("sec-fetch-site").iter().all(|site| matches!(site.as_bytes(), b"same-origin" | b"none"))
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let mut headers = HeaderMap::new();
        for (name, value) in pairs.iter().map(pair) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn origins_are_compared_whole() {
        let check = |origin: &'static str, host: &'static str, allowed: &[&str], wanted: bool| {
            let allowed: Vec<String> = allowed.iter().map(|&text| text.to_owned()).collect();
            assert_eq!(
                origin_allowed(&headers(&[("origin", origin), ("host", host)]), &allowed),
                wanted,
                "{origin} {host} {allowed:?}"
            );
        };
        check("https://app.example.com", "app.example.com", &[], true);
        check("https://APP.example.com", "app.EXAMPLE.com", &[], true);
        check("http://app.example.com:8000", "app.example.com:8000", &[], true);
        check("https://app.example.com", "app.example.com:443", &[], true);
        check("http://app.example.com:8000", "app.example.com", &[], false);
        check("https://app.example.com", "app.example.com:80", &[], false);
        check("https://evil-app.example.com", "app.example.com", &[], false);
        check("https://app.example.com.evil.net", "app.example.com", &[], false);
        check("https://evil.net", "app.example.com", &["https://app.example.com"], false);
        check("https://web.example.com", "api.example.com", &["https://web.example.com"], true);
        check("https://web.example.com", "api.example.com", &["https://web.example.com/"], true);
        check("http://web.example.com", "api.example.com", &["https://web.example.com"], false);
        check(
            "https://xweb.example.com",
            "api.example.com",
            &["https://web.example.com", "web.example.com", "example.com"],
            false,
        );
        check("https://evil.net", "api.example.com", &["*"], true);
        check("null", "api.example.com", &[], false);
        check("null", "null", &[], false);
        check("https://", "", &[], false);
        check("", "", &[], false);
    }

    #[test]
    fn no_origin_is_no_browser_and_two_are_none() {
        assert!(origin_allowed(&headers(&[("host", "a")]), &[]));
        assert!(!origin_allowed(&headers(&[("host", "a"), ("origin", "http://a"), ("origin", "http://b")]), &[]));
    }

    /// Another site's page makes a browser ask without naming an origin, by an image for instance.
    #[test]
    fn who_asks_for_another_site_says_so() {
        for (site, allowed) in [("same-origin", true), ("none", true), ("same-site", false), ("cross-site", false)] {
            assert_eq!(origin_allowed(&headers(&[("host", "a"), ("sec-fetch-site", site)]), &[]), allowed, "{site}");
        }
        assert!(origin_allowed(&headers(&[("host", "a"), ("origin", "http://a"), ("sec-fetch-site", "x")]), &[]));
    }

    #[test]
    fn tokens_are_found_where_they_belong() {
        let check = |pairs: &[(&'static str, &'static str)], bearer: Option<&str>, cookie: Option<&str>| {
            let found = Credentials::of(&headers(pairs), "session_id", &[]);
            assert_eq!((found.bearer.as_deref(), found.cookie.as_deref()), (bearer, cookie), "{pairs:?}");
        };
        check(&[("authorization", "Bearer v1.a.b.c")], Some("v1.a.b.c"), None);
        check(&[("authorization", "bearer  v1.a.b.c ")], Some("v1.a.b.c"), None);
        check(&[("authorization", "Basic abc")], None, None);
        check(&[("authorization", "Bearer ")], None, None);
        check(&[("cookie", "a=b; session_id=v1.x=; c=d")], None, Some("v1.x="));
        check(&[("cookie", "xsession_id=1; session_id2=2"), ("cookie", "session_id=3")], None, Some("3"));
        check(&[("cookie", "session_id=")], None, None);
    }
}
