//! A Docker host of the fleet.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{Generation, HostName, Timestamp};

/// A Docker host: where it is, what it can carry and what is reserved on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Its name within the platform.
    pub name: HostName,
    /// The address on which container ports are published and reached by gateways and probes.
    pub address: IpAddr,
    /// Its Docker Engine: `unix:///var/run/docker.sock`, `tcp://10.0.0.5:2375`, `https://10.0.0.5:2376`
    /// (client certificate from the scheduler's configuration), `fake://name`.
    pub engine: String,
    /// Labels that placements may ask for.
    pub labels: BTreeMap<String, String>,
    /// Region, given to containers as `CAAS_REGION`; may be empty.
    pub region: String,
    /// Memory in MiB that instances may reserve together.
    pub memory_mb: u32,
    /// CPU in thousandths of a core (from the engine; for `most_idle_cpu`).
    pub cpu_millis: u32,
    /// First and last host port for instances (inclusive).
    pub port_range: (u16, u16),
    /// Whether new instances may come, as the operator wants it.
    pub schedulability: Schedulability,
    /// Since when its engine has not answered; `None`: it answers.
    pub down_since: Option<Timestamp>,
    /// Memory in MiB reserved by instances not yet released.
    pub reserved_memory_mb: u32,
    /// Sum of the CPU weights of instances not yet released.
    pub reserved_cpu_weight: u32,
    /// Instances not yet released.
    pub instances: u32,
    /// CPU used by all of its containers, thousandths of a core, as last measured.
    pub used_cpu_millis: u32,
    /// When it joined.
    pub created_at: Timestamp,
    /// Optimistic lock of the operator's fields; reservations do not change it.
    pub generation: Generation,
}

impl Host {
    /// Memory in MiB that can still be reserved.
    pub fn free_memory_mb(&self) -> u32 {
        self.memory_mb.saturating_sub(self.reserved_memory_mb)
    }

    /// Whether a new instance may be placed on it at all.
    pub fn accepts_instances(&self) -> bool {
        self.schedulability == Schedulability::Schedulable && self.down_since.is_none()
    }
}

/// Why two hosts can't both be: their memory and ports would be given away twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostClash {
    /// They bear the same name.
    Name,
    /// They have the same engine.
    Engine,
    /// They lease ports of the same address.
    Ports,
}

impl Host {
    /// Whether a host of that `name` with that `engine`, leasing `ports` of `address`, can't be beside this one.
    pub fn clash(&self, name: &HostName, engine: &str, address: IpAddr, ports: (u16, u16)) -> Option<HostClash> {
        if self.name == *name {
            return Some(HostClash::Name);
        }
        if self.engine == engine {
            return Some(HostClash::Engine);
        }
        let overlap = self.port_range.0 <= ports.1 && ports.0 <= self.port_range.1;
        // Engines in memory listen on nothing.
        let listens = !self.engine.starts_with("fake:") && !engine.starts_with("fake:");
        (listens && self.address == address && overlap).then_some(HostClash::Ports)
    }
}

/// Whether new instances may be placed on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedulability {
    /// New instances may come.
    Schedulable,
    /// No new instances; those present stay (`cordon`).
    Cordoned,
    /// No new instances, and those present are moved elsewhere (`drain`).
    Draining,
}

impl Schedulability {
    /// The word in the store and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schedulable => "schedulable",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
        }
    }
}

/// A change of a host's row.
#[derive(Clone, Debug, PartialEq)]
pub enum HostChange {
    /// Cordon, uncordon, drain.
    Schedulability(Schedulability),
    /// The whole set of labels.
    Labels(BTreeMap<String, String>),
    /// Memory that instances may reserve, MiB.
    MemoryMb(u32),
    /// Its engine stopped answering at that time.
    Down(Timestamp),
    /// Its engine answers.
    Up,
    /// CPU used by its containers, thousandths of a core.
    UsedCpu(u32),
}

impl Host {
    /// This host after `change`, one generation later.
    #[must_use]
    pub fn changed(&self, change: &HostChange) -> Self {
        let mut next = self.clone();
        match change {
            HostChange::Schedulability(s) => next.schedulability = *s,
            HostChange::Labels(labels) => next.labels = labels.clone(),
            HostChange::MemoryMb(mb) => next.memory_mb = *mb,
            HostChange::Down(since) => next.down_since = Some(*since),
            HostChange::Up => next.down_since = None,
            HostChange::UsedCpu(millis) => next.used_cpu_millis = *millis,
        }
        next.generation = self.generation.next();
        next
    }
}
