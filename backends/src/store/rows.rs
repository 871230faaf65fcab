//! The model's words as columns: for each kind of row the columns in order, how they are read, and how written.

use std::str::FromStr;

use model::store::{RegistryCredentials, StoreError, Token};
use model::{
    App, AppId, Certificate, CertificateOrder, Event, Failure, Figures, Generation, Host, HostName, Instance,
    InstanceId, NewEvent, Operation, Release, SealedCertificate, Timestamp,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde::de::IntoDeserializer as _;
use serde::de::value::Error as WordError;

use super::database::{Fault, Lease, Row, Value, values};

/// Most characters of an event's sentence.
const MESSAGE_CHARS: usize = 2_000;

/// Most characters of an event's actor.
const ACTOR_CHARS: usize = 200;

/// Reads a row's columns one after the other.
pub(super) struct Columns<'r> {
    row: &'r Row,
    next: usize,
}

fn corrupt(why: impl std::fmt::Display) -> Fault {
    Fault::Fatal(StoreError::Corrupt(why.to_string()))
}

impl Columns<'_> {
    fn at(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }

    fn present<T>(&self, value: Option<T>) -> Result<T, Fault> {
        value.ok_or_else(|| corrupt(format!("column {} is null", self.next - 1)))
    }

    fn int_or_null<T: TryFrom<i64>>(&mut self) -> Result<Option<T>, Fault> {
        let at = self.at();
        self.row
            .int(at)?
            .map(|n| T::try_from(n).map_err(|_| corrupt(format!("column {at} holds {n}, out of range"))))
            .transpose()
    }

    fn int<T: TryFrom<i64>>(&mut self) -> Result<T, Fault> {
        let value = self.int_or_null()?;
        self.present(value)
    }

    fn text_or_null(&mut self) -> Result<Option<String>, Fault> {
        let at = self.at();
        self.row.text(at)
    }

    fn text(&mut self) -> Result<String, Fault> {
        let value = self.text_or_null()?;
        self.present(value)
    }

    fn id_or_null<T: FromStr<Err: std::fmt::Display>>(&mut self) -> Result<Option<T>, Fault> {
        self.text_or_null()?
            .map(|text| text.parse().map_err(corrupt))
            .transpose()
    }

    fn id<T: FromStr<Err: std::fmt::Display>>(&mut self) -> Result<T, Fault> {
        let value = self.id_or_null()?;
        self.present(value)
    }

    /// One of the words that the model's `as_str` writes.
    fn word<T: DeserializeOwned>(&mut self) -> Result<T, Fault> {
        let value = self.word_or_null()?;
        self.present(value)
    }

    fn word_or_null<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Fault> {
        let read = |text: String| {
            let word: Result<T, WordError> = T::deserialize(text.as_str().into_deserializer());
            word.map_err(corrupt)
        };
        self.text_or_null()?.map(read).transpose()
    }

    fn json_or_null<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Fault> {
        self.text_or_null()?
            .map(|text| serde_json::from_str(&text).map_err(corrupt))
            .transpose()
    }

    fn json<T: DeserializeOwned>(&mut self) -> Result<T, Fault> {
        let value = self.json_or_null()?;
        self.present(value)
    }

    fn time_or_null(&mut self) -> Result<Option<Timestamp>, Fault> {
        Ok(self.int_or_null()?.map(Timestamp::from_millis))
    }

    fn time(&mut self) -> Result<Timestamp, Fault> {
        Ok(Timestamp::from_millis(self.int()?))
    }

    fn generation(&mut self) -> Result<Generation, Fault> {
        Ok(Generation(self.int()?))
    }
}

/// A kind of row.
pub(super) trait Stored: Sized {
    /// Its columns, in the order in which they are read.
    const COLUMNS: &'static str;
    /// Reads one.
    fn read(columns: &mut Columns<'_>) -> Result<Self, Fault>;
}

impl Lease {
    /// All rows of `sql`, which selects [`Stored::COLUMNS`].
    pub(super) async fn list<T: Stored>(&mut self, rest: &str, values: &[Value<'_>]) -> Result<Vec<T>, Fault> {
        let rows = self.rows(format!("SELECT {} {rest}", T::COLUMNS), values).await?;
        rows.iter().map(|row| T::read(&mut Columns { row, next: 0 })).collect()
    }

    /// The first row of `SELECT columns {rest}`.
    pub(super) async fn fetch<T: Stored>(&mut self, rest: &str, values: &[Value<'_>]) -> Result<Option<T>, Fault> {
        Ok(self.list(rest, values).await?.pop())
    }
}

/// A document as JSON text.
pub(super) fn json<T: Serialize>(document: &T) -> Result<Value<'static>, Fault> {
    serde_json::to_string(document).map(Value::from).map_err(corrupt)
}

/// `(?, …), (?, …)`: `rows` groups of `columns` placeholders.
pub(super) fn placeholders(rows: usize, columns: usize) -> String {
    let group = format!("({})", vec!["?"; columns].join(", "));
    vec![group; rows].join(", ")
}

/// Cuts a list for multi-row statements into runs of few different lengths, so that few different texts are
/// prepared; none is longer than what either database takes in one statement.
pub(super) fn runs<T>(mut list: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let length = [64, 16, 4, 1].into_iter().find(|n| *n <= list.len())?;
        let (run, rest) = list.split_at(length);
        list = rest;
        Some(run)
    })
}

fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

impl Stored for App {
    const COLUMNS: &'static str = "id, tenant, status, instances, release_no, previous_release, last_release, \
        restart_before, canary, way_back, config, operation, placements, created_at, updated_at, generation";

    fn read(c: &mut Columns<'_>) -> Result<Self, Fault> {
        Ok(Self {
            id: c.id()?,
            tenant: c.id()?,
            status: c.word()?,
            instances: c.int()?,
            release: c.int()?,
            previous_release: c.int()?,
            last_release: c.int()?,
            restart_before: c.time_or_null()?,
            canary: c.json_or_null()?,
            way_back: c.json_or_null()?,
            config: c.json()?,
            operation: c.id_or_null()?,
            placements: c.int()?,
            created_at: c.time()?,
            updated_at: c.time()?,
            generation: c.generation()?,
        })
    }
}

impl Stored for Release {
    const COLUMNS: &'static str = "app, number, version, digest, spec, protocol, created_at";

    fn read(c: &mut Columns<'_>) -> Result<Self, Fault> {
        Ok(Self {
            app: c.id()?,
            number: c.int()?,
            version: c.id()?,
            digest: c.text()?,
            spec: c.json()?,
            protocol: c.word_or_null()?,
            created_at: c.time()?,
        })
    }
}

impl Stored for Host {
    const COLUMNS: &'static str = "name, address, engine, labels, region, memory_mb, cpu_millis, port_first, \
        port_last, schedulability, down_since, reserved_memory_mb, reserved_cpu_weight, instances, used_cpu_millis, \
        created_at, generation";

    fn read(c: &mut Columns<'_>) -> Result<Self, Fault> {
        Ok(Self {
            name: c.id()?,
            address: c.id()?,
            engine: c.text()?,
            labels: c.json()?,
            region: c.text()?,
            memory_mb: c.int()?,
            cpu_millis: c.int()?,
            port_range: (c.int()?, c.int()?),
            schedulability: c.word()?,
            down_since: c.time_or_null()?,
            reserved_memory_mb: c.int()?,
            reserved_cpu_weight: c.int()?,
            instances: c.int()?,
            used_cpu_millis: c.int()?,
            created_at: c.time()?,
            generation: c.generation()?,
        })
    }
}

impl Stored for Instance {
    const COLUMNS: &'static str = "id, app, release_no, version, host, port, container, state, routed_at, \
        assumed_healthy, failure, restarts, memory_mb, cpu_weight, placed_at, started_at, heartbeat_at, changed_at, \
        released_at, generation";

    fn read(c: &mut Columns<'_>) -> Result<Self, Fault> {
        Ok(Self {
            id: c.id()?,
            app: c.id()?,
            release: c.int()?,
            version: c.id()?,
            host: c.id()?,
            port: c.int()?,
            container: c.id_or_null()?,
            state: c.word()?,
            routed_at: c.time_or_null()?,
            assumed_healthy: c.int::<i64>()? != 0,
            failure: c.json_or_null()?,
            restarts: c.int()?,
            memory_mb: c.int()?,
            cpu_weight: c.int()?,
            placed_at: c.time()?,
            started_at: c.time_or_null()?,
            heartbeat_at: c.time_or_null()?,
            changed_at: c.time()?,
            released_at: c.time_or_null()?,
            generation: c.generation()?,
        })
    }
}

impl Stored for Operation {
    const COLUMNS: &'static str =
        "id, kind, app, host, release_no, state, message, failure, steps, reasons, created_at, updated_at, generation";

    fn read(c: &mut Columns<'_>) -> Result<Self, Fault> {
        Ok(Self {
            id: c.id()?,
            kind: c.word()?,
            app: c.id_or_null()?,
            host: c.id_or_null()?,
            release: c.int_or_null()?,
            state: c.word()?,
            message: c.text()?,
            failure: c.json_or_null()?,
            steps: c.json()?,
            reasons: c.json()?,
            created_at: c.time()?,
            updated_at: c.time()?,
            generation: c.generation()?,
        })
    }
}

impl Stored for Event {
    const COLUMNS: &'static str = "seq, at, kind, app, instance, host, operation, actor, message";

    fn read(c: &mut Columns<'_>) -> Result<Self, Fault> {
        Ok(Self {
            seq: c.int()?,
            at: c.time()?,
            event: NewEvent {
                kind: c.word()?,
                app: c.id_or_null()?,
                instance: c.id_or_null()?,
                host: c.id_or_null()?,
                operation: c.id_or_null()?,
                actor: c.text()?,
                message: c.text()?,
            },
        })
    }
}

impl Stored for Token {
    const COLUMNS: &'static str = "id, name, secret_hash, created_at";

    fn read(c: &mut Columns<'_>) -> Result<Self, Fault> {
        Ok(Self {
            id: c.text()?,
            name: c.text()?,
            secret_hash: c.text()?,
            created_at: c.time()?,
        })
    }
}

impl Stored for RegistryCredentials {
    const COLUMNS: &'static str = "registry, username, password";

    fn read(c: &mut Columns<'_>) -> Result<Self, Fault> {
        Ok(Self {
            registry: c.text()?,
            username: c.text()?,
            password: c.text()?,
        })
    }
}

impl Stored for Certificate {
    const COLUMNS: &'static str = "name, source, names, issuer, not_before, expires_at, updated_at, mark";

    fn read(c: &mut Columns<'_>) -> Result<Self, Fault> {
        Ok(Self {
            name: c.id()?,
            source: c.word()?,
            names: c.json()?,
            issuer: c.text()?,
            not_before: c.time()?,
            expires_at: c.time()?,
            updated_at: c.time()?,
            mark: c.int()?,
        })
    }
}

/// A certificate itself, with the mark of its row.
pub(super) struct Marked(pub(super) i64, pub(super) SealedCertificate);

impl Stored for Marked {
    const COLUMNS: &'static str = "mark, chain, sealed_key";

    fn read(c: &mut Columns<'_>) -> Result<Self, Fault> {
        let mark = c.int()?;
        let (chain, key) = (c.text()?, c.text()?);
        Ok(Self(mark, SealedCertificate::new(chain, key)))
    }
}

impl Stored for CertificateOrder {
    const COLUMNS: &'static str = "domain, app, failures, next_try, error, holder, held_until, url, sealed_key, \
        challenge, mark, presented, generation";

    fn read(c: &mut Columns<'_>) -> Result<Self, Fault> {
        Ok(Self {
            domain: c.id()?,
            app: c.id()?,
            failures: c.int()?,
            next_try: c.time()?,
            error: c.text_or_null()?,
            holder: c.text()?,
            held_until: c.time()?,
            url: c.text_or_null()?,
            key: c.text_or_null()?.map(Into::into),
            challenge: c.text_or_null()?.map(Into::into),
            mark: c.int()?,
            presented: c.int()?,
            generation: c.generation()?,
        })
    }
}

/// A sealed account at an authority.
pub(super) struct Account(pub(super) String);

impl Stored for Account {
    const COLUMNS: &'static str = "account";

    fn read(c: &mut Columns<'_>) -> Result<Self, Fault> {
        Ok(Self(c.text()?))
    }
}

/// The newest figures of an instance.
pub(super) struct InstanceFigures(pub(super) InstanceId, pub(super) Figures);

impl Stored for InstanceFigures {
    const COLUMNS: &'static str = "id, cpu_milli, memory_bytes, memory_limit_bytes, measured_at";

    fn read(c: &mut Columns<'_>) -> Result<Self, Fault> {
        let id = c.id()?;
        let figures = Figures {
            cpu_milli: c.int()?,
            memory_bytes: c.int()?,
            memory_limit_bytes: c.int()?,
            at: c.time()?,
        };
        Ok(Self(id, figures))
    }
}

/// A leased, resting or spared port.
pub(super) struct HostPort {
    pub(super) host: HostName,
    pub(super) port: u16,
    pub(super) leased: bool,
    pub(super) rest_until: Timestamp,
}

impl Stored for HostPort {
    const COLUMNS: &'static str = "host, port, instance, rest_until";

    fn read(c: &mut Columns<'_>) -> Result<Self, Fault> {
        Ok(Self {
            host: c.id()?,
            port: c.int()?,
            leased: c.text_or_null()?.is_some(),
            rest_until: c.time()?,
        })
    }
}

/// A port at the gateways.
pub(super) struct GatewayPort {
    pub(super) port: u16,
    pub(super) app: Option<AppId>,
}

impl Stored for GatewayPort {
    const COLUMNS: &'static str = "port, app";

    fn read(c: &mut Columns<'_>) -> Result<Self, Fault> {
        Ok(Self {
            port: c.int()?,
            app: c.id_or_null()?,
        })
    }
}

/// A used `Idempotency-Key`.
pub(super) struct UsedKey {
    pub(super) request_hash: String,
    /// `None`: what was asked for was done at once.
    pub(super) operation: Option<model::OperationId>,
    pub(super) created_at: Timestamp,
}

impl Stored for UsedKey {
    const COLUMNS: &'static str = "request_hash, operation, created_at";

    fn read(c: &mut Columns<'_>) -> Result<Self, Fault> {
        Ok(Self {
            request_hash: c.text()?,
            operation: match c.text()? {
                text if text.is_empty() => None,
                text => Some(text.parse().map_err(corrupt)?),
            },
            created_at: c.time()?,
        })
    }
}

/// All columns of a host, as written when it joins: nothing reserved.
pub(super) fn host_insert(host: &Host) -> Result<[Value<'_>; 17], Fault> {
    Ok([
        (&host.name).into(),
        host.address.to_string().into(),
        (&host.engine).into(),
        json(&host.labels)?,
        (&host.region).into(),
        host.memory_mb.into(),
        host.cpu_millis.into(),
        host.port_range.0.into(),
        host.port_range.1.into(),
        host.schedulability.as_str().into(),
        host.down_since.into(),
        Value::Int(0),
        Value::Int(0),
        Value::Int(0),
        host.used_cpu_millis.into(),
        host.created_at.into(),
        Generation::FIRST.0.into(),
    ])
}

/// All columns of an instance, and its token's hash.
pub(super) fn instance_insert<'a>(instance: &'a Instance, token_hash: &'a str) -> Result<[Value<'a>; 21], Fault> {
    Ok([
        (&instance.id).into(),
        (&instance.app).into(),
        instance.release.into(),
        (&instance.version).into(),
        (&instance.host).into(),
        instance.port.into(),
        instance.container.as_ref().into(),
        instance.state.as_str().into(),
        instance.routed_at.into(),
        instance.assumed_healthy.into(),
        failure(instance.failure.as_ref())?,
        instance.restarts.into(),
        instance.memory_mb.into(),
        instance.cpu_weight.into(),
        instance.placed_at.into(),
        instance.started_at.into(),
        instance.heartbeat_at.into(),
        instance.changed_at.into(),
        instance.released_at.into(),
        instance.generation.0.into(),
        token_hash.into(),
    ])
}

/// A document as JSON, if there is one.
pub(super) fn json_or_null<T: Serialize>(document: Option<&T>) -> Result<Value<'static>, Fault> {
    document.map_or(Ok(Value::Null), json)
}

/// A failure as JSON, if there is one.
pub(super) fn failure(failure: Option<&Failure>) -> Result<Value<'static>, Fault> {
    json_or_null(failure)
}

/// All columns of an operation.
pub(super) fn operation_insert(operation: &Operation) -> Result<[Value<'_>; 13], Fault> {
    Ok([
        (&operation.id).into(),
        operation.kind.as_str().into(),
        operation.app.as_ref().into(),
        operation.host.as_ref().into(),
        operation.release.into(),
        operation.state.as_str().into(),
        (&operation.message).into(),
        failure(operation.failure.as_ref())?,
        json(&operation.steps)?,
        json(&operation.reasons)?,
        operation.created_at.into(),
        operation.updated_at.into(),
        operation.generation.0.into(),
    ])
}

/// All columns of an event but its number.
pub(super) fn event_insert(event: &NewEvent, at: Timestamp, mark: i64) -> [Value<'_>; 9] {
    values![
        at,
        event.kind.as_str(),
        event.app.as_ref(),
        event.instance.as_ref(),
        event.host.as_ref(),
        event.operation.as_ref(),
        cut(&event.actor, ACTOR_CHARS),
        cut(&event.message, MESSAGE_CHARS),
        mark,
    ]
}

/// The app with this id.
pub(super) async fn app(lease: &mut Lease, id: &AppId) -> Result<Option<App>, Fault> {
    lease.fetch("FROM apps WHERE id = ?", &values![id]).await
}

/// The host with this name.
pub(super) async fn host(lease: &mut Lease, name: &HostName) -> Result<Option<Host>, Fault> {
    lease.fetch("FROM hosts WHERE name = ?", &values![name]).await
}

/// The operation with this id.
pub(super) async fn operation(lease: &mut Lease, id: &model::OperationId) -> Result<Option<Operation>, Fault> {
    lease.fetch("FROM operations WHERE id = ?", &values![id]).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_have_few_lengths_and_lose_nothing() {
        let list: Vec<u32> = (0..107).collect();
        let lengths: Vec<usize> = runs(&list).map(<[u32]>::len).collect();
        assert_eq!(lengths, [64, 16, 16, 4, 4, 1, 1, 1]);
        assert_eq!(runs(&list).flatten().copied().collect::<Vec<_>>(), list);
        assert_eq!(runs::<u32>(&[]).count(), 0);
    }

    #[test]
    fn placeholders_are_groups() {
        assert_eq!(placeholders(2, 3), "(?, ?, ?), (?, ?, ?)");
        assert_eq!(placeholders(1, 1), "(?)");
    }
}
