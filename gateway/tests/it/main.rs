//! The gateway as its users see it: over sockets, in front of upstreams that behave and upstreams that do not.

#![allow(clippy::unwrap_used)]

extern crate caas_gateway as gateway;

mod acme;
mod balance;
mod explain;
mod faults;
mod follow;
mod grpc;
mod h2c;
mod h2c_sockets;
mod hostile_answers;
mod http2;
mod http2_conformance;
mod http2_fields;
mod http2_floods;
mod http2_frames;
mod http2_support;
mod http2_tunnels;
mod identity;
mod interim;
mod limits;
mod observing;
mod operators;
mod outages;
mod passthrough;
mod peers;
mod proxy_protocol;
mod replay;
mod routing;
mod shutdown;
mod slow_clients;
mod stalls;
mod support;
mod tcp;
mod tls;
mod tls_registry;
mod tls_support;
mod trailers;
mod tunnels;
mod versions;
