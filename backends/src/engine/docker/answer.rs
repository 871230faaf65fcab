//! Docker's answers as the model's errors, decided by status and words alone. Does no I/O.
//!
//! Docker answers 500 for much that is not its fault, so that the words must decide. They come from dockerd 20.10 to
//! 29; what is not known stays [`EngineError::Other`] with the engine's own words.

use std::error::Error as _;

use model::engine::EngineError;

/// An engine's answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// No answer: not reached, connection lost, or too late.
    Silent(String),
    /// An answer with an HTTP status (0: an error line within a stream) and Docker's words.
    Status(u16, String),
    /// An answer that can't be read.
    Odd(String),
}

/// Longest text taken from an engine's answer, bytes.
const MAX_WORDS: usize = 2048;

impl From<bollard::errors::Error> for Fault {
    fn from(error: bollard::errors::Error) -> Self {
        use bollard::errors::Error as E;
        match error {
            E::DockerResponseServerError { status_code, message } => Self::Status(status_code, cut(message)),
            E::DockerStreamError { error } => Self::Status(0, cut(error)),
            E::RequestTimeoutError => Self::Silent("no answer in time".into()),
            E::SocketNotFoundError(path) => Self::Silent(format!("there is no socket at {path}")),
            E::IOError { .. } | E::HyperResponseError { .. } | E::HyperLegacyError { .. } => {
                Self::Silent(chain(&error))
            }
            _ => Self::Odd(chain(&error)),
        }
    }
}

/// An error with its causes in one line.
fn chain(error: &bollard::errors::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let words = next.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = next.source();
    }
    cut(text)
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_WORDS {
        let mut end = MAX_WORDS;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text.trim().to_owned()
}

fn has_any(text: &str, words: &[&str]) -> bool {
    words.iter().any(|w| text.contains(w))
}

fn is_disk_full(lower: &str) -> bool {
    has_any(lower, &["no space left on device", "disk quota exceeded"])
}

impl Fault {
    /// The HTTP status, if there was an answer.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Status(code, _) => Some(*code),
            _ => None,
        }
    }

    /// The fault of a call that has no meaning of its own for any status.
    pub(super) fn plain(self, engine: &str) -> EngineError {
        match self {
            Self::Silent(message) => EngineError::Unreachable {
                engine: engine.to_owned(),
                message,
            },
            Self::Status(_, words) if is_disk_full(&words.to_lowercase()) => EngineError::DiskFull(words),
            Self::Status(0, words) => EngineError::Other(words),
            Self::Status(code, words) => EngineError::Other(format!("status {code}: {words}")),
            Self::Odd(message) => EngineError::Other(format!("its answer can't be read: {message}")),
        }
    }

    /// The fault of a call on a container.
    pub(super) fn of_container(self, engine: &str, container: &str) -> EngineError {
        match self {
            Self::Status(404, _) => EngineError::NoSuchContainer(container.to_owned()),
            other => other.plain(engine),
        }
    }

    /// The fault of a call that makes the engine ask `image`'s registry.
    pub(super) fn of_registry(self, engine: &str, image: &str) -> EngineError {
        let (code, words) = match self {
            Self::Status(code, words) => (code, words),
            other => return other.plain(engine),
        };
        let image = image.to_owned();
        let lower = words.to_lowercase();
        if is_disk_full(&lower) {
            return EngineError::DiskFull(words);
        }
        // "permission denied" is the engine's own file system, not the registry.
        let denied = has_any(
            &lower.replace("permission denied", ""),
            &[
                "unauthorized",
                "no basic auth credentials",
                "authentication required",
                "denied",
                "forbidden",
            ],
        );
        if denied || matches!(code, 401 | 403) {
            return EngineError::RegistryDenied { image, message: words };
        }
        if has_any(
            &lower,
            &["no matching manifest", "does not match the specified platform"],
        ) {
            return EngineError::Refused(format!("image {image} is not for this host's kind of machine: {words}"));
        }
        if has_any(
            &lower,
            &[
                "manifest unknown",
                "name unknown",
                "repository name not known",
                "no such image",
            ],
        ) {
            return EngineError::ImageNotFound(image);
        }
        if has_any(
            &lower,
            &[
                "connection refused",
                "connection reset",
                "no such host",
                "server misbehaving",
                "i/o timeout",
                "timeout exceeded",
                "client.timeout",
                "tls handshake timeout",
                "context deadline exceeded",
                "context canceled",
                "request canceled",
                "no route to host",
                "network is unreachable",
                "eof",
                "x509:",
                "tls:",
                "server gave http response to https client",
                "unexpected http status: 5",
                "toomanyrequests",
                "too many requests",
            ],
        ) {
            return EngineError::RegistryUnreachable { image, message: words };
        }
        if code == 404 || lower.contains("not found") {
            return EngineError::ImageNotFound(image);
        }
        if code == 400 {
            return EngineError::Refused(words);
        }
        Self::Status(code, words).plain(engine)
    }

    /// The fault of creating a container from `image`. A name in use (409) is the caller's to look into.
    pub(super) fn of_create(self, engine: &str, image: &str) -> EngineError {
        match self {
            Self::Status(404, _) => EngineError::ImageNotFound(image.to_owned()),
            Self::Status(400, words) => EngineError::Refused(words),
            other => other.plain(engine),
        }
    }

    /// What to do about the fault of starting (or restarting) a container that publishes `port`.
    pub(super) fn of_start(self, engine: &str, port: u16) -> StartFault {
        let (code, words) = match self {
            Self::Status(code, words) => (code, words),
            other => return StartFault::Unknown(other.plain(engine)),
        };
        let lower = words.to_lowercase();
        if has_any(&lower, &["port is already allocated", "address already in use"]) {
            return StartFault::Failed(EngineError::PortTaken(port));
        }
        if lower.contains("docker-init") && has_any(&lower, &["not found", "no such file"]) {
            return StartFault::NoInit;
        }
        match code {
            // Removed, or being removed, by somebody else meanwhile.
            404 => StartFault::Gone,
            409 => StartFault::Gone,
            400 => StartFault::Failed(EngineError::Refused(words)),
            // The host's address is not one of the host's: no other port will do.
            _ if lower.contains("cannot assign requested address") => StartFault::Failed(EngineError::Refused(words)),
            _ => StartFault::Failed(Self::Status(code, words).plain(engine)),
        }
    }
}

/// What to do about a start that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StartFault {
    /// Somebody removed it meanwhile: begin again.
    Gone,
    /// The host has no `docker-init`: begin again without.
    NoInit,
    /// It will not start: remove it and report this.
    Failed(EngineError),
    /// No answer: it may have started or not.
    Unknown(EngineError),
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGINE: &str = "tcp://h:1";

    fn registry(code: u16, words: &str) -> EngineError {
        Fault::Status(code, words.into()).of_registry(ENGINE, "r:5000/app:1")
    }

    #[test]
    fn registry_answers() {
        for (code, words) in [
            (
                404,
                "manifest for 127.0.0.1:5000/app:9 not found: manifest unknown: manifest unknown",
            ),
            (404, "no such image"),
            (0, "manifest unknown"),
            (500, "name unknown: repository name not known to registry"),
        ] {
            assert_eq!(
                registry(code, words),
                EngineError::ImageNotFound("r:5000/app:1".into()),
                "{words}"
            );
        }
        for (code, words) in [
            (
                500,
                "Get http://127.0.0.1:5000/v2/app/manifests/1: unauthorized: authentication required",
            ),
            (500, "Head \"http://r/v2/app/manifests/1\": no basic auth credentials"),
            (
                404,
                "pull access denied for app, repository does not exist or may require 'docker login': denied: requested access",
            ),
            (401, ""),
            (403, "x"),
        ] {
            assert!(
                matches!(registry(code, words), EngineError::RegistryDenied { .. }),
                "{words}"
            );
        }
        for words in [
            "Get \"http://127.0.0.1:5000/v2/\": dial tcp 127.0.0.1:5000: connect: connection refused",
            "Get \"https://r/v2/\": dial tcp: lookup r on 10.0.0.2:53: no such host",
            "Get \"https://r/v2/\": net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)",
            "Get \"https://r/v2/\": x509: certificate signed by unknown authority",
            "Get \"https://r/v2/\": http: server gave HTTP response to HTTPS client",
            "received unexpected HTTP status: 503 Service Unavailable",
            "unexpected EOF",
        ] {
            assert!(
                matches!(registry(500, words), EngineError::RegistryUnreachable { .. }),
                "{words}"
            );
        }
        for words in [
            "write /var/lib/docker/tmp/x: no space left on device",
            "failed: No space left on device",
        ] {
            assert!(matches!(registry(0, words), EngineError::DiskFull(_)), "{words}");
        }
        assert!(matches!(
            registry(500, "open /var/lib/docker/x: permission denied"),
            EngineError::Other(_)
        ));
        assert!(matches!(
            registry(0, "no matching manifest for linux/amd64 in the manifest list entries"),
            EngineError::Refused(_)
        ));
        assert!(matches!(
            registry(400, "invalid reference format"),
            EngineError::Refused(_)
        ));
    }

    #[test]
    fn start_answers() {
        let start = |code, words: &str| Fault::Status(code, words.into()).of_start(ENGINE, 20_000);
        for words in [
            "driver failed programming external connectivity on endpoint x: Bind for 10.0.0.1:20000 failed: port is already allocated",
            "driver failed programming external connectivity on endpoint x: Error starting userland proxy: listen tcp4 10.0.0.1:20000: bind: address already in use",
            "failed to set up container networking: failed to bind host port for 10.0.0.1:20000:172.17.0.2:80/tcp: address already in use",
        ] {
            assert_eq!(
                start(500, words),
                StartFault::Failed(EngineError::PortTaken(20_000)),
                "{words}"
            );
        }
        assert!(matches!(
            start(
                400,
                "OCI runtime create failed: exec: \"/nope\": no such file or directory: unknown"
            ),
            StartFault::Failed(EngineError::Refused(_))
        ));
        assert_eq!(
            start(500, "exec: \"docker-init\": executable file not found in $PATH"),
            StartFault::NoInit
        );
        assert_eq!(start(404, "No such container: x"), StartFault::Gone);
        assert!(matches!(
            start(
                500,
                "Error starting userland proxy: listen tcp4 9.9.9.9:20000: bind: cannot assign requested address"
            ),
            StartFault::Failed(EngineError::Refused(_))
        ));
        assert!(matches!(
            start(500, "error creating overlay mount: no space left on device"),
            StartFault::Failed(EngineError::DiskFull(_))
        ));
        assert!(matches!(
            Fault::Silent("gone".into()).of_start(ENGINE, 1),
            StartFault::Unknown(EngineError::Unreachable { .. })
        ));
    }

    #[test]
    fn other_answers() {
        let status = |code, words: &str| Fault::Status(code, words.into());
        assert_eq!(
            status(404, "No such image: a:1").of_create(ENGINE, "a:1"),
            EngineError::ImageNotFound("a:1".into())
        );
        assert!(matches!(
            status(400, "Minimum memory limit allowed is 6MB").of_create(ENGINE, "a:1"),
            EngineError::Refused(_)
        ));
        assert_eq!(
            status(404, "x").of_container(ENGINE, "c1"),
            EngineError::NoSuchContainer("c1".into())
        );
        let error = Fault::from(bollard::errors::Error::SocketNotFoundError("/nowhere".into())).plain(ENGINE);
        assert!(
            matches!(&error, EngineError::Unreachable { engine, .. } if engine == ENGINE),
            "{error}"
        );
        let long = Fault::from(bollard::errors::Error::DockerStreamError {
            error: "é".repeat(5000),
        });
        assert!(matches!(long, Fault::Status(0, words) if words.len() <= MAX_WORDS));
    }
}
