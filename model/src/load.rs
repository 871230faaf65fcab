//! Load: what an instance uses of its host, and where that host is.

use serde::{Deserialize, Serialize};

use crate::{HostName, Timestamp};

/// Longest region, in bytes (as the API takes it of a host).
pub const MAX_REGION: usize = 63;

/// What an instance used when it was last measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// CPU, thousandths of a core.
    pub cpu_milli: u32,
    /// Memory in use without page cache, bytes.
    pub memory_bytes: u64,
    /// Memory that it may use, bytes.
    pub memory_limit_bytes: u64,
    /// When it was measured.
    pub at: Timestamp,
}

/// What is registered of an instance's load. As JSON:
/// `{"host":"h1","region":"eu","cpu_milli":120,"memory_bytes":1,"memory_limit_bytes":2,"at":1700000000000}`; `at` is in
/// milliseconds since the Unix epoch, without figures the last four are missing. Unknown fields are passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Load {
    /// Its host.
    pub host: HostName,
    /// The host's region; may be empty.
    pub region: String,
    /// What it uses, once that was measured.
    pub figures: Option<Figures>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    host: HostName,
    #[serde(default)]
    region: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cpu_milli: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory_limit_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<i64>,
}

impl From<Written> for Load {
    fn from(w: Written) -> Self {
        let figures = match (w.cpu_milli, w.memory_bytes, w.memory_limit_bytes, w.at) {
            (Some(cpu_milli), Some(memory_bytes), Some(memory_limit_bytes), Some(at)) => Some(Figures {
                cpu_milli,
                memory_bytes,
                memory_limit_bytes,
                at: Timestamp::from_millis(at),
            }),
            _ => None,
        };
        Self {
            host: w.host,
            region: w.region,
            figures,
        }
    }
}

impl From<Load> for Written {
    fn from(load: Load) -> Self {
        let f = load.figures;
        Self {
            host: load.host,
            region: load.region,
            cpu_milli: f.map(|f| f.cpu_milli),
            memory_bytes: f.map(|f| f.memory_bytes),
            memory_limit_bytes: f.map(|f| f.memory_limit_bytes),
            at: f.map(|f| f.at.as_millis()),
        }
    }
}

impl Load {
    /// Reads an entry of the registry.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(data: &[u8]) -> Result<Self, String> {
        let load: Self = serde_json::from_slice(data).map_err(|e| e.to_string())?;
        if load.region.len() > MAX_REGION {
            return Err(format!("its region has more than {MAX_REGION} bytes"));
        }
        Ok(load)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_as_documented_and_tolerant() {
        let text = br#"{"host":"h1","region":"eu","cpu_milli":120,"memory_bytes":1,"memory_limit_bytes":2,"at":1700000000000}"#;
        let load = Load::parse(text).expect("as documented");
        assert_eq!(load.figures.expect("all four").cpu_milli, 120);
        assert_eq!(serde_json::to_vec(&load).expect("json"), text);
        let bare = Load::parse(br#"{"host":"h1","disk":7,"cpu_milli":3}"#).expect("fields may be missing or unknown");
        assert_eq!((bare.region.as_str(), bare.figures), ("", None));
        assert_eq!(
            serde_json::to_string(&bare).expect("json"),
            r#"{"host":"h1","region":""}"#
        );
        for bad in [
            &b"{"[..],
            b"{}",
            br#"{"host":"no/host"}"#,
            br#"{"host":"h1","cpu_milli":-1}"#,
            b"\xff",
        ] {
            assert!(Load::parse(bad).is_err());
        }
        let long = format!(r#"{{"host":"h1","region":"{}"}}"#, "x".repeat(MAX_REGION + 1));
        assert!(Load::parse(long.as_bytes()).is_err());
    }
}
