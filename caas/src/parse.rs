//! Reading of what people write on the command line: sizes, `KEY=VALUE`, durations, ports.

use std::time::Duration;

use model::config::Protocol;
use serde::Deserialize as _;

/// `512M`, `512MiB`, `1.5G`, `2GiB` or a bare number of MiB, as whole MiB. M and G are powers of 1024, as with Docker.
pub(crate) fn memory_mib(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is not a memory size: write 512M, 512MiB, 2G or a number of MiB");
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "m" | "mb" | "mi" | "mib" => 1.0,
        "g" | "gb" | "gi" | "gib" => 1024.0,
        "k" | "kb" | "ki" | "kib" => 1.0 / 1024.0,
        _ => return Err(wrong()),
    };
    let mib = (number * factor).ceil();
    if (1.0..=f64::from(u32::MAX)).contains(&mib) {
        // In range and whole, so the cast is exact.
        Ok(mib as u32)
    } else {
        Err(wrong())
    }
}

/// `KEY=VALUE`; the value may hold further `=` and may be empty.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} must be KEY=VALUE")),
    }
}

/// `KEY=VALUE` sets a label, `KEY-` takes it away (`None`).
pub(crate) fn label_change(text: &str) -> Result<(String, Option<String>), String> {
    if let Some((key, value)) = text.split_once('=')
        && !key.is_empty()
    {
        return Ok((key.to_owned(), Some(value.to_owned())));
    }
    match text.strip_suffix('-') {
        Some(key) if !key.is_empty() => Ok((key.to_owned(), None)),
        _ => Err(format!("{text:?} must be KEY=VALUE, or KEY- to take a label away")),
    }
}

/// `30`, `30s`, `500ms`, `5m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration: write 30s, 500ms, 5m or 1h");
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(millis)
        .filter(|ms| *ms <= 7 * 24 * 3_600_000)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is longer than 7 days"))
}

/// `1024-65535`, or one port.
pub(crate) fn port_range(text: &str) -> Result<(u16, u16), String> {
    let wrong = || format!("{text:?} is not a range of ports: write FIRST-LAST, such as 20000-29999");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let first: u16 = first.parse().map_err(|_| wrong())?;
    let last: u16 = last.parse().map_err(|_| wrong())?;
    if first == 0 || first > last {
        return Err(wrong());
    }
    Ok((first, last))
}

/// How an app proves to be alive, as written after `--health`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// `GET` this path.
    Path(String),
    /// The port accepts a connection.
    Tcp,
    /// The app reports over the API.
    Heartbeat,
    /// A running container is enough.
    None,
}

/// `/path`, `tcp`, `heartbeat` or `none`.
pub(crate) fn health(text: &str) -> Result<Health, String> {
    match text {
        "tcp" => Ok(Health::Tcp),
        "heartbeat" => Ok(Health::Heartbeat),
        "none" => Ok(Health::None),
        path if path.starts_with('/') => Ok(Health::Path(path.to_owned())),
        _ => Err(format!(
            "{text:?} must be a path such as /_ping, or tcp, heartbeat, none"
        )),
    }
}

/// What an app speaks, such as `tcp`.
pub(crate) fn protocol(text: &str) -> Result<Protocol, String> {
    let known = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text);
    Protocol::deserialize(known).map_err(|_| format!("{text:?} must be http, h2c or tcp"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_sizes() {
        for (text, mib) in [
            ("512", 512),
            ("512M", 512),
            ("512MiB", 512),
            ("512mb", 512),
            ("1G", 1024),
            ("1.5GiB", 1536),
            ("1024k", 1),
            ("100K", 1),
        ] {
            assert_eq!(memory_mib(text), Ok(mib), "{text}");
        }
        for bad in ["", "M", "-1", "0", "1T", "1 M", "1..2", "nan", "9999999999G", "512Mi B"] {
            assert!(memory_mib(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn keys_and_values() {
        assert_eq!(key_value("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(key_value("A="), Ok(("A".into(), String::new())));
        for bad in ["", "A", "=b"] {
            assert!(key_value(bad).is_err(), "{bad:?}");
        }
        assert_eq!(label_change("disk=ssd"), Ok(("disk".into(), Some("ssd".into()))));
        assert_eq!(label_change("disk-"), Ok(("disk".into(), None)));
        assert!(label_change("disk").is_err());
        assert!(label_change("-").is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for bad in ["", "s", "1.5s", "1d", "-1s", "99999999999999999999h", "200h"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn port_ranges() {
        assert_eq!(port_range("20000-29999"), Ok((20_000, 29_999)));
        assert_eq!(port_range("80"), Ok((80, 80)));
        for bad in ["", "0-1", "2-1", "1-65536", "a-b"] {
            assert!(port_range(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn health_words() {
        assert_eq!(health("/ok"), Ok(Health::Path("/ok".into())));
        assert_eq!(health("tcp"), Ok(Health::Tcp));
        assert!(health("http").is_err());
    }
}
