//! Every scenario in one program: they share one fleet of real Docker hosts and run one after the other; only those that touch
//! nothing of the fleet run beside them (locks see to it whatever the number of test threads). Without root or the needed
//! programs they are skipped visibly; with `CAAS_TEST_REQUIRE_ALL=1` that is a failure.

mod acme;
mod bad_input;
mod basics;
mod canary;
mod certificates;
mod demo;
mod engines;
mod failures;
mod gateway;
mod health;
mod outages;
mod placements;
mod protocol;
mod scale;
mod streams;
mod support;
mod tcp;
mod tidy;
mod verbs;
