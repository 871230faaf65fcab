//! The host of a request: from its raw bytes to what it names, without allocating or guessing; and the names under which apps are found. Pure.

use std::str;

use model::config::is_segment;

/// A host that can't be one: the request is answered with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadHost;

/// What a host names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// `{app}.{domain}`.
    App(&'a str),
    /// `{version}--{app}.{domain}`; the version in lower case, as hosts are.
    Version { version: &'a str, app: &'a str },
    /// Any other name: perhaps an app's custom domain.
    Domain(&'a str),
}

/// Longest host name (RFC 1035).
const LONGEST: usize = 253;

/// Space for a host that must be put into lower case.
pub(crate) type Scratch = [u8; LONGEST + 1];
pub(crate) const SCRATCH: Scratch = [0; LONGEST + 1];

/// The name in a Host header or an authority: without port and trailing dot, in lower case. Borrows `raw` when it is in
/// lower case already. IPv6 literals, user info, lists and everything outside `[A-Za-z0-9._-]` are refused.
pub(crate) fn name<'a>(raw: &'a [u8], scratch: &'a mut Scratch) -> Result<&'a str, BadHost> {
    let mut end = raw.len();
    let mut upper = false;
    for (i, &byte) in raw.iter().enumerate() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => {}
            b'.' => {
                if i == 0 || raw[i - 1] == b'.' {
                    return Err(BadHost);
                }
            }
            b'A'..=b'Z' => upper = true,
            b':' => {
                let port = &raw[i + 1..];
                let digits = port.len() <= 5 && port.iter().all(u8::is_ascii_digit);
                if !digits || port.iter().fold(0u32, |n, d| n * 10 + u32::from(d - b'0')) > 65_535 {
                    return Err(BadHost);
                }
                end = i;
                break;
            }
            _ => return Err(BadHost),
        }
    }
    if end > 0 && raw[end - 1] == b'.' {
        end -= 1;
    }
    if end == 0 || end > LONGEST {
        return Err(BadHost);
    }
    let text = if upper {
        let copy = &mut scratch[..end];
        copy.copy_from_slice(&raw[..end]);
        copy.make_ascii_lowercase();
        &*copy
    } else {
        &raw[..end]
    };
    str::from_utf8(text).map_err(|_| BadHost)
}

/// What `host` (as [`name`] gives it) names at a gateway for `domain`.
pub(crate) fn target<'a>(host: &'a str, domain: &str) -> Target<'a> {
    let label = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'));
    match label {
        Some(label) => match label.as_bytes().windows(2).position(|w| w == b"--") {
            Some(at) => Target::Version {
                version: &label[..at],
                app: &label[at + 2..],
            },
            None if label.contains('.') => Target::Domain(host),
            None => Target::App(label),
        },
        None => Target::Domain(host),
    }
}

/// Under which key the table has a custom domain of an app; none for names under the gateway's own domain, which belong to the
/// apps of those names whoever claims them, and for what no host can be. Of a wildcard (`*.example.com`) it is what follows the
/// label (`.example.com`): no host begins so. A path (`shop.example.com/api`) stays with its name.
pub(crate) fn key_of(domain: &str, own: &str) -> Option<Box<str>> {
    if let Some((name, path)) = domain.split_once('/') {
        let sound = path.split('/').all(is_segment);
        let name = key_of(name, own).filter(|name| sound && !name.starts_with('.'))?;
        return Some(format!("{name}/{path}").into());
    }
    let lower = domain.to_ascii_lowercase();
    let key = match lower.strip_prefix('*') {
        Some(rest) if rest.starts_with('.') && rest[1..].contains('.') => rest,
        Some(_) => return None,
        None if lower.starts_with('.') || !lower.contains('.') => return None,
        None => &lower,
    };
    let under = key
        .strip_suffix(own)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    (!under).then(|| key.into())
}

/// Whether a request's path is `prefix` or below it. Paths are compared as they came, by whole segments: what is written in
/// another way (`/%61pi`, `//api`, `/x/../api`) is another path, and reaches its app as it came too.
pub(crate) fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The key of the wildcard that a name falls under; none for the gateway's own domain.
pub(crate) fn wildcard<'a>(name: &'a str, own: &str) -> Option<&'a str> {
    let dot = name.find('.')?;
    (name != own).then(|| &name[dot..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(raw: &str) -> Option<String> {
        name(raw.as_bytes(), &mut [0; LONGEST + 1]).ok().map(str::to_owned)
    }

    #[test]
    fn hosts_as_clients_write_them() {
        for (raw, want) in [
            ("hello.localhost", "hello.localhost"),
            ("HeLLo.LocalHost", "hello.localhost"),
            ("hello.localhost:8080", "hello.localhost"),
            ("hello.localhost:", "hello.localhost"),
            ("hello.localhost.", "hello.localhost"),
            ("hello.localhost.:80", "hello.localhost"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("a_b.c", "a_b.c"),
            ("v1.2--hello.localhost", "v1.2--hello.localhost"),
        ] {
            assert_eq!(named(raw).as_deref(), Some(want), "{raw}");
        }
        let long = format!("{}.", "a".repeat(253));
        assert!(named(&long).is_some());
    }

    #[test]
    fn hosts_that_are_none() {
        let long = "a".repeat(254);
        for raw in [
            "",
            ".",
            ":80",
            "[::1]",
            "[::1]:80",
            "::1",
            "a..b",
            ".a",
            "a b",
            "a,b",
            "evil@app.test",
            "app.test\0.evil",
            "a/b",
            "a:b",
            "a:99999",
            "a:80:80",
            "a:-1",
            "a:+1",
            "a:123456",
            "app.test,evil",
            "a\tb",
            "é",
            "a%41",
            "a?b",
            "a#b",
            "a\\b",
            "..",
            &long,
        ] {
            assert_eq!(named(raw), None, "{raw:?}");
        }
    }

    #[test]
    fn targets() {
        let app = |a| Target::App(a);
        assert_eq!(target("hello.localhost", "localhost"), app("hello"));
        assert_eq!(
            target("2--hello.localhost", "localhost"),
            Target::Version {
                version: "2",
                app: "hello"
            }
        );
        assert_eq!(
            target("v1.2--hello.a.b", "a.b"),
            Target::Version {
                version: "v1.2",
                app: "hello"
            }
        );
        for other in [
            "localhost",
            "hellolocalhost",
            "shop.example.com",
            "hello.localhost.evil",
            "a.hello.localhost",
        ] {
            assert_eq!(target(other, "localhost"), Target::Domain(other));
        }
    }

    #[test]
    fn domains_of_apps_and_the_names_under_them() {
        let key = |domain| key_of(domain, "apps.test");
        assert_eq!(key("Shop.example.com").as_deref(), Some("shop.example.com"));
        assert_eq!(key("*.example.com").as_deref(), Some(".example.com"));
        assert_eq!(key("*.notapps.test").as_deref(), Some(".notapps.test"));
        for none in [
            "apps.test",
            "hello.apps.test",
            "*.apps.test",
            "*.hello.apps.test",
            "*.com",
            "*",
            "*.",
            "*com.a",
            ".example.com",
            "localhost",
        ] {
            assert_eq!(key(none), None, "{none}");
        }
        assert_eq!(key("A.b/Api/v1").as_deref(), Some("a.b/Api/v1"));
        for none in [
            "a.b/",
            "a.b//x",
            "a.b/../x",
            "apps.test/x",
            "a.apps.test/x",
            "*.a.b/x",
            "a/b",
        ] {
            assert_eq!(key(none), None, "{none}");
        }
        for path in ["/api", "/api/", "/api/x", "/api/../x", "/api//"] {
            assert!(is_below(path, "/api"), "{path}");
        }
        for path in [
            "/",
            "*",
            "",
            "/ap",
            "/apix",
            "/api;x",
            "/API",
            "/%61pi",
            "//api",
            "/x/../api",
            "/api%2fx",
            "api",
        ] {
            assert!(!is_below(path, "/api"), "{path}");
        }
        assert_eq!(wildcard("a.example.com", "apps.test"), Some(".example.com"));
        assert_eq!(wildcard("b.a.example.com", "apps.test"), Some(".a.example.com"));
        assert_eq!(wildcard("apps.test", "apps.test"), None);
        assert_eq!(wildcard("localhost", "apps.test"), None);
    }

    proptest! {
        #[test]
        fn never_panics_and_gives_only_clean_names(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(name) = name(&raw, &mut [0; LONGEST + 1]) {
                prop_assert!(!name.is_empty() && name.len() <= LONGEST);
                prop_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b)));
                prop_assert!(!name.starts_with('.') && !name.ends_with('.') && !name.contains(".."));
            }
        }

        #[test]
        fn case_port_and_dot_change_nothing(label in "[a-z][a-z0-9-]{0,20}", port in 0u16.., dot in any::<bool>(), upper in any::<bool>()) {
            let plain = format!("{label}.gateway.example");
            let mut text = if upper { plain.to_ascii_uppercase() } else { plain.clone() };
            if dot { text.push('.'); }
            text.push_str(&format!(":{port}"));
            let got = named(&text);
            prop_assert_eq!(got.as_deref(), Some(plain.as_str()));
        }

        #[test]
        fn every_app_and_version_is_found(app in "[a-z](-?[a-z0-9]){0,18}", version in "[a-z0-9_]([._-]?[a-z0-9_]){0,20}") {
            let host = format!("{version}--{app}.gw.test");
            let target = target(&host, "gw.test");
            prop_assert_eq!(target, Target::Version { version: &version, app: &app });
        }
    }
}
