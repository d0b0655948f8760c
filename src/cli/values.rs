//! What people write for sizes, durations and choices, checked where it enters. The same types
//! read flags, environment variables and the configuration file.

use std::{fmt, str::FromStr, time::Duration};

use clap::ValueEnum;
use serde::Deserialize;

use crate::{client::Durability, membership, server::Policy};

/// The shortest time between two looks.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// A number of bytes: `4096`, `64MiB`, `1g`. K, M, G and T are powers of 1024, as for `dd` and
/// `mount`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "SizeText")]
pub struct Size(pub u64);

/// Why a text is not a [`Size`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a size; write 4096, 64MiB or 1g")]
pub struct SizeError {
    text: String,
}

impl FromStr for Size {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Self, SizeError> {
        parse_size::Config::new()
            .with_binary()
            .parse_size(text)
            .map(Self)
            .map_err(|_| SizeError { text: text.chars().take(40).collect() })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&indicatif::BinaryBytes(self.0).to_string())
    }
}

/// A size in a configuration file may be a number or a text.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a size such as 4096, \"64MiB\" or \"1g\"")]
enum SizeText {
    Bytes(u64),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = SizeError;
    fn try_from(size: SizeText) -> Result<Self, SizeError> {
        match size {
            SizeText::Bytes(bytes) => Ok(Self(bytes)),
            SizeText::Text(text) => text.parse(),
        }
    }
}

/// Reads `5s`, `250ms`, `1m 30s`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "not a duration; write a number and its unit, as in 5s or 250ms".to_owned())
}

/// The same, not so short that asking is all that is done.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    match interval >= INTERVAL_MIN {
        true => Ok(interval),
        false => Err(format!("too short; the least is {INTERVAL_MIN:?}")),
    }
}

/// Reads a share in percent: more than 0, at most 100.
pub fn parse_percent(text: &str) -> Result<f64, String> {
    let percent = text.trim_end_matches('%').parse().ok();
    percent
        .filter(|percent| *percent > 0.0 && *percent <= 100.0)
        .ok_or_else(|| "not a share; write a number above 0 and up to 100".to_owned())
}

/// A duration that a configuration file may say, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Period(pub Duration);

impl FromStr for Period {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse_duration(text).map(Self)
    }
}

impl TryFrom<String> for Period {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// `--transport`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportChoice {
    /// RDMA where both ends of a link have it, else TCP, saying so once
    Auto,
    /// RDMA only: without a device the server does not start, and no link falls back
    Rdma,
    /// TCP only
    Tcp,
}

impl From<TransportChoice> for Policy {
    fn from(choice: TransportChoice) -> Self {
        match choice {
            TransportChoice::Auto => Self::Auto,
            TransportChoice::Rdma => Self::Rdma,
            TransportChoice::Tcp => Self::Tcp,
        }
    }
}

/// `--poll`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Poll {
    /// Spin for a moment, then sleep: an idle server uses no CPU
    Adaptive,
    /// Spin always: the lowest latency, and one whole core
    Busy,
}

/// `--detection`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Detection {
    /// At least 120 ms of silence: a quiet network, and nodes that are never short of processor time
    Fast,
    /// At least 600 ms; more for neighbours that are late at times
    Normal,
    /// At least 3 s: overloaded or emulated nodes
    Patient,
}

impl From<Detection> for membership::Config {
    fn from(profile: Detection) -> Self {
        match profile {
            Detection::Fast => Self::fast(),
            Detection::Normal => Self::default(),
            Detection::Patient => Self::patient(),
        }
    }
}

/// `--durability`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DurabilityChoice {
    /// Survives the process that wrote it
    Local,
    /// Survives the node
    Mirrored,
}

impl From<DurabilityChoice> for Durability {
    fn from(choice: DurabilityChoice) -> Self {
        match choice {
            DurabilityChoice::Local => Self::Local,
            DurabilityChoice::Mirrored => Self::Mirrored,
        }
    }
}

/// As it is written on a command line.
pub fn text_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line an event
    Text,
    /// One JSON object an event
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        let size = |text: &str| text.parse::<Size>().map(|s| s.0).ok();
        assert_eq!(size("4096"), Some(4096));
        assert_eq!(size("64MiB"), Some(64 << 20));
        assert_eq!(size("1g"), Some(1 << 30));
        assert_eq!(size("1.5 GiB"), Some(3 << 29));
        for bad in ["", "-1", "much", "1x", "99999999999g", "9223372036854775808g"] {
            assert_eq!(size(bad), None, "{bad}");
        }
        assert_eq!(Size(64 << 20).to_string(), "64.00 MiB");
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("5s"), Ok(Duration::from_secs(5)));
        assert!(parse_duration("5").is_err());
        assert!(parse_duration("-5s").is_err());
        assert_eq!(parse_interval("100ms"), Ok(Duration::from_millis(100)));
        assert!(parse_interval("99ms").unwrap_err().contains("100ms"));
    }
}
