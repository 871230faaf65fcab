//! Filters: which hosts can't carry an instance, and why. Each host is refused by the first filter that it fails,
//! so the counts of an explanation add up to the number of hosts that do not fit.

use std::fmt::Write as _;

use model::{Host, Schedulability};
use serde::Serialize;

use super::{DISK_REST, Request, Tally};

/// The filters, in the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Filter {
    /// Cordoned, draining or down.
    State,
    /// Lacks a label that is asked for.
    Labels,
    /// Has a label that is not wanted.
    NotLabels,
    /// Has too little memory left.
    Memory,
    /// Carries so much CPU weight already that an instance would get next to nothing when all are busy.
    Cpu,
    /// Every port of its range is leased.
    Port,
    /// Its engine said a moment ago that its disk is full.
    Disk,
    /// Already runs an instance of an app that wants one per host.
    OnePerHost,
    /// Already runs as many instances of the app as are allowed.
    MaxPerHost,
    /// Does not run the app that must be there.
    TogetherWith,
    /// Runs the app that must not be there.
    ApartFrom,
}

/// The first filter that refuses `host`; `None`: it fits.
pub(super) fn refusal(host: &Host, tally: &Tally, request: &Request<'_>) -> Option<Filter> {
    let placement = &request.spec.placement;
    if !host.accepts_instances() {
        return Some(Filter::State);
    }
    let has = |(key, value): (&String, &String)| host.labels.get(key) == Some(value);
    if !placement.labels.iter().all(has) {
        return Some(Filter::Labels);
    }
    if placement.not_labels.iter().any(has) {
        return Some(Filter::NotLabels);
    }
    if free_memory(host, tally) < request.spec.memory_mb {
        return Some(Filter::Memory);
    }
    if free_cpu_weight(host, tally).is_some_and(|free| free < request.spec.cpu_weight) {
        return Some(Filter::Cpu);
    }
    let (first, last) = host.port_range;
    let ports = u32::from(last.saturating_sub(first)) + 1;
    if last < first || tally.ports >= ports || tally.no_port {
        return Some(Filter::Port);
    }
    if tally.disk_full {
        return Some(Filter::Disk);
    }
    let own = request.own(&host.name, tally);
    if placement.one_per_host && own > 0 {
        return Some(Filter::OnePerHost);
    }
    if placement.max_per_host > 0 && own >= placement.max_per_host {
        return Some(Filter::MaxPerHost);
    }
    if placement.together_with.as_ref().is_some_and(|app| tally.live(app) == 0) {
        return Some(Filter::TogetherWith);
    }
    if placement.apart_from.as_ref().is_some_and(|app| tally.present(app) > 0) {
        return Some(Filter::ApartFrom);
    }
    None
}

/// Memory in MiB that is neither reserved nor promised by an earlier pick of the same look at the store.
pub(super) fn free_memory(host: &Host, tally: &Tally) -> u32 {
    host.free_memory_mb().saturating_sub(tally.promised_memory_mb)
}

/// How many times over a host's cores may be promised. Docker's CPU weights only share out what is contended, and
/// most instances idle most of the time, so that a weight is no capacity; but at 32 instances of the default weight
/// per core each is left with 3 % of one when all are busy.
const CPU_OVERCOMMIT: u64 = 32;
/// CPU weight of one core: Docker's default weight.
const WEIGHT_PER_CORE: u64 = 1024;

/// CPU weight that can still be promised; `None` when the host's cores are not known.
fn free_cpu_weight(host: &Host, tally: &Tally) -> Option<u32> {
    if host.cpu_millis == 0 {
        return None;
    }
    let all = u64::from(host.cpu_millis) * WEIGHT_PER_CORE * CPU_OVERCOMMIT / 1000;
    let taken = u64::from(host.reserved_cpu_weight) + u64::from(tally.promised_cpu_weight);
    Some(u32::try_from(all.saturating_sub(taken)).unwrap_or(u32::MAX))
}

/// Why `filter` refused `hosts` (one or more), for a person.
pub(super) fn sentence(filter: Filter, hosts: &[&Host], request: &Request<'_>) -> String {
    let n = hosts.len();
    let (noun, has, lacks, runs) = if n == 1 {
        ("host", "has", "lacks", "runs")
    } else {
        ("hosts", "have", "lack", "run")
    };
    let placement = &request.spec.placement;
    let list = |labels: &std::collections::BTreeMap<String, String>| {
        labels.iter().fold(String::new(), |mut text, (key, value)| {
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing to a String can't fail.
            let _ = write!(text, "{comma}{key}={value}");
            text
        })
    };
    let name = |app: &Option<model::AppId>| app.as_ref().map(ToString::to_string).unwrap_or_default();
    match filter {
        Filter::State => {
            let down = hosts.iter().filter(|h| h.down_since.is_some()).count();
            let of = |s| {
                hosts
                    .iter()
                    .filter(|h| h.down_since.is_none() && h.schedulability == s)
                    .count()
            };
            let parts: Vec<String> = [
                ("down", down),
                ("cordoned", of(Schedulability::Cordoned)),
                ("draining", of(Schedulability::Draining)),
            ]
            .iter()
            .filter(|(_, n)| *n > 0)
            .map(|(word, n)| format!("{n} {word}"))
            .collect();
            format!("state: {n} {noun} can't take instances ({})", parts.join(", "))
        }
        Filter::Labels => format!("labels: {n} {noun} {lacks} {}", list(&placement.labels)),
        Filter::NotLabels => format!("not_labels: {n} {noun} {has} one of {}", list(&placement.not_labels)),
        Filter::Memory => format!("memory: {n} {noun} {has} less than {} MiB free", request.spec.memory_mb),
        Filter::Cpu => format!(
            "cpu: {n} {noun} {has} less than {} of CPU weight left",
            request.spec.cpu_weight
        ),
        Filter::Port => format!("port: {n} {noun} {has} no free port in the range"),
        Filter::Disk => format!(
            "disk: {n} {noun} {has} a full disk, by what the engine said within the last {} s",
            DISK_REST.as_secs()
        ),
        Filter::OnePerHost => format!("one_per_host: {n} {noun} already {runs} an instance"),
        Filter::MaxPerHost => format!(
            "max_per_host: {n} {noun} already {runs} {} of this app",
            placement.max_per_host
        ),
        Filter::TogetherWith => format!(
            "together_with: {n} {noun} {runs} no instance of {}",
            name(&placement.together_with)
        ),
        Filter::ApartFrom => format!(
            "apart_from: {n} {noun} {runs} an instance of {}",
            name(&placement.apart_from)
        ),
    }
}
