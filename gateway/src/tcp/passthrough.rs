//! TLS passthrough: a client at the TLS port whose first message names an app that has a certificate of its own reaches it
//! untouched. The gateway reads the message, and from then on only copies bytes.

use std::sync::Arc;

use model::config::Protocol;

use crate::route::{self, Target};
use crate::table::{App, Table};
use crate::tls::hello::Hello;
use crate::worker::Worker;

/// The app that the client names and that wants its connections as they are, and the version that the name asks for.
pub(crate) fn wanted(worker: &Worker, hello: &Hello) -> Option<(Arc<App>, Option<Box<str>>)> {
    let name = hello.server_name()?;
    worker.with_table(|table| {
        let (app, version) = named(table, &worker.shared.config.domain, &name)?;
        Some((Arc::clone(app), version))
    })
}

/// The same by the name alone, at a gateway for the domain `own`.
pub(crate) fn named<'t>(table: &'t Table, own: &str, name: &str) -> Option<(&'t Arc<App>, Option<Box<str>>)> {
    let mut scratch = route::SCRATCH;
    let name = route::name(name.as_bytes(), &mut scratch).ok()?;
    let target = route::target(name, own);
    let version = match target {
        Target::Version { version, .. } => Some(version.into()),
        Target::App(_) | Target::Domain(_) => None,
    };
    let (app, _) = table.find(target, own, "")?;
    let config = &app.settings.config;
    let wants = config.protocol == Protocol::Tcp && config.tcp.passthrough;
    wants.then_some((app, version))
}
