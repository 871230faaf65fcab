//! How a run ends: an exit code that scripts can rely on, and the sentence that says why.

use std::fmt;

/// Any error that has no code of its own.
pub(crate) const ERROR: u8 = 1;
/// No host fits, or the deploy failed.
pub(crate) const NOT_PLACED: u8 = 2;
/// What was waited for did not happen in time.
pub(crate) const TIMED_OUT: u8 = 3;
/// The API did not accept the token.
pub(crate) const NOT_ALLOWED: u8 = 4;
/// Bad usage or configuration (`EX_USAGE` of sysexits.h).
pub(crate) const USAGE: u8 = 64;

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// One sentence, lower case, without a final stop.
    pub(crate) message: String,
    /// Further lines: reasons, last log lines, what to do.
    pub(crate) lines: Vec<String>,
}

impl Failure {
    /// A failure with exit code `code`.
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            lines: Vec::new(),
        }
    }

    /// An error without a code of its own.
    pub(crate) fn error(message: impl Into<String>) -> Self {
        Self::new(ERROR, message)
    }

    /// Bad usage or configuration.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    /// The same failure with one more line.
    #[must_use]
    pub(crate) fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "caas: {}", self.message)?;
        for line in &self.lines {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}
