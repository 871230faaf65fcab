//! Which app has which port. The scheduler gives each port to one app; should the registry hold it for two nevertheless, the
//! first that was heard of has it until it lets go.

use std::collections::BTreeMap;

use model::AppConfig;
use model::AppId;
use model::config::Protocol;

/// The port at which connections reach an app with this configuration.
fn port_of(config: &AppConfig) -> Option<u16> {
    (config.protocol == Protocol::Tcp && config.tcp.port != 0).then_some(config.tcp.port)
}

/// All claims of ports.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    by_port: BTreeMap<u16, Vec<AppId>>,
    changed: bool,
}

impl Claims {
    /// Notes that the app's configuration `old` became `new`.
    pub(crate) fn change(&mut self, app: &AppId, old: &AppConfig, new: &AppConfig) {
        let (old, new) = (port_of(old), port_of(new));
        if old == new {
            return;
        }
        if let Some(port) = old
            && let Some(apps) = self.by_port.get_mut(&port)
        {
            apps.retain(|a| a != app);
            if apps.is_empty() {
                self.by_port.remove(&port);
            }
        }
        if let Some(port) = new {
            let apps = self.by_port.entry(port).or_default();
            if !apps.is_empty() {
                tracing::warn!(%app, port, holder = %apps[0], "port claimed by two apps; the first keeps it");
            }
            apps.push(app.clone());
        }
        self.changed = true;
    }

    /// Who has which port, when that is other than at the last call.
    pub(crate) fn take_change(&mut self) -> Option<BTreeMap<u16, AppId>> {
        std::mem::take(&mut self.changed).then(|| {
            self.by_port
                .iter()
                .filter_map(|(port, apps)| Some((*port, apps.first()?.clone())))
                .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(port: u16) -> AppConfig {
        let mut config = AppConfig {
            protocol: Protocol::Tcp,
            ..AppConfig::default()
        };
        config.tcp.port = port;
        config
    }

    #[test]
    fn a_port_is_the_first_ones_until_it_lets_go() {
        let (db, cache): (AppId, AppId) = ("db".parse().expect("id"), "cache".parse().expect("id"));
        let none = AppConfig::default();
        let mut claims = Claims::default();
        assert_eq!(claims.take_change(), None);
        claims.change(&db, &none, &tcp(15_000));
        claims.change(&cache, &none, &tcp(15_000));
        assert_eq!(claims.take_change(), Some(BTreeMap::from([(15_000, db.clone())])));
        assert_eq!(claims.take_change(), None);
        claims.change(&db, &tcp(15_000), &tcp(15_001));
        let both = BTreeMap::from([(15_000, cache.clone()), (15_001, db.clone())]);
        assert_eq!(claims.take_change(), Some(both));
        claims.change(&cache, &tcp(15_000), &none);
        claims.change(&db, &tcp(15_001), &tcp(0));
        assert_eq!(claims.take_change(), Some(BTreeMap::new()));
    }

    #[test]
    fn only_tcp_apps_have_ports() {
        let mut config = tcp(15_000);
        assert_eq!(port_of(&config), Some(15_000));
        config.protocol = Protocol::Http;
        assert_eq!(port_of(&config), None);
        assert_eq!(port_of(&tcp(0)), None);
    }
}
