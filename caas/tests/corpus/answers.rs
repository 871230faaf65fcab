//! A corpus of answers that containers must not send, and of odd ones that they may: each with where it comes from, all at
//! once and several times in parallel, with a check that every client got its own answer or none.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::gateway::Gateway;
use crate::peers::*;

/// What the client is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// Its own answer, whole.
    Own,
    /// This status, without a body.
    Status(u16),
    /// 502 with a reason.
    Refused,
    /// The beginning of an answer that does not end cleanly, or nothing.
    Cut,
}
use Want::{Cut, Own, Refused, Status};

/// What the container does after its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Keep,
    Close,
    /// Closes with a reset.
    Reset,
    /// Sends `poison` a moment later, unless the next request came first: then it would be its answer.
    Late(&'static str),
    /// Sends its answer again and again.
    Endless,
    /// Has said something before it was asked.
    Before(&'static str),
}
use Then::{Before, Close, Endless, Keep, Late, Reset};

/// `{id}` is what the client asked for, `{n}` its length, `{x}` the same in hexadecimal; `{long}` is 200,000 bytes.
struct Case(&'static str, &'static str, &'static str, &'static str, Then, Want);

const GET: &str = "GET";
const HEAD: &str = "HEAD";
const WS: &str = "WS";

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: {n}\r\n\r\n{id}";

#[rustfmt::skip]
const CASES: &[Case] = &[
    // No answer at all, or of another protocol.
    Case("ssh", "RFC 4253 4.2", GET, "SSH-2.0-OpenSSH_9.2\r\n", Keep, Refused),
    Case("smtp", "RFC 5321 4.2", GET, "220 mail ESMTP\r\n", Keep, Refused),
    Case("http-0-9", "RFC 1945 6", GET, "poison without a head", Close, Refused),
    Case("icy", "RFC 9112 2.3", GET, "ICY 200 OK\r\n\r\npoison", Keep, Refused),
    Case("tls-alert", "RFC 8446 6", GET, "\x15\x03\x01\x00\x02\x02\x28", Keep, Refused),
    Case("http2-frame", "RFC 9113 3.4", GET, "\x00\x00\x00\x04\x00\x00\x00\x00\x00", Keep, Refused),
    Case("nothing", "RFC 9110 15.6.3", GET, "", Close, Refused),
    Case("reset", "RFC 9110 15.6.3", GET, "", Reset, Refused),
    Case("half-a-line", "RFC 9112 8", GET, "HTTP/1.1 20", Close, Refused),
    Case("half-a-head", "RFC 9112 8", GET, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n", Close, Refused),
    Case("lines-without-end", "RFC 9112 2.2", GET, "\r\n", Endless, Refused),
    // The status line.
    Case("version-2-0", "RFC 9112 2.3", GET, "HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("version-1-2", "RFC 9112 2.3", GET, "HTTP/1.2 200 OK\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("version-1-10", "RFC 9112 2.3", GET, "HTTP/1.10 200 OK\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("version-3", "RFC 9112 2.3", GET, "HTTP/3 200 OK\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("name-lower", "RFC 9112 2.3", GET, "http/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("space-first", "RFC 9112 4", GET, " HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("byte-first", "RFC 9112 4", GET, "XHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("tab-for-space", "RFC 9112 4", GET, "HTTP/1.1\t200 OK\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("two-spaces", "RFC 9112 4", GET, "HTTP/1.1  200 OK\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("status-1000", "RFC 9110 15", GET, "HTTP/1.1 1000 X\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("status-99", "RFC 9110 15", GET, "HTTP/1.1 99 X\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("status-000", "RFC 9110 15", GET, "HTTP/1.1 000 X\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("status-letters", "RFC 9110 15", GET, "HTTP/1.1 2OO OK\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("status-negative", "RFC 9110 15", GET, "HTTP/1.1 -20 OK\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("status-none", "RFC 9112 4", GET, "HTTP/1.1\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("reason-nul", "RFC 9112 4", GET, "HTTP/1.1 200 O\0K\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("reason-cr", "RFC 9112 4", GET, "HTTP/1.1 200 O\rK\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("reason-long", "RFC 9112 4", GET, "HTTP/1.1 200 {long}\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("reason-none", "RFC 9112 4", GET, "HTTP/1.1 200\r\ncontent-length: {n}\r\n\r\n{id}", Keep, Own),
    Case("line-feeds", "RFC 9112 2.2", GET, "HTTP/1.1 200 OK\ncontent-length: {n}\n\n{id}", Keep, Own),
    // Fields.
    Case("value-nul", "RFC 9110 5.5", GET, "HTTP/1.1 200 OK\r\nx-a: a\0b\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("value-cr", "RFC 9110 5.5", GET, "HTTP/1.1 200 OK\r\nx-a: a\rb\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("value-control", "RFC 9110 5.5", GET, "HTTP/1.1 200 OK\r\nx-a: a\x01b\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("value-del", "RFC 9110 5.5", GET, "HTTP/1.1 200 OK\r\nx-a: a\x7fb\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("value-long", "RFC 9110 5.4", GET, "HTTP/1.1 200 OK\r\nx-a: {long}\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("name-nul", "RFC 9110 5.1", GET, "HTTP/1.1 200 OK\r\nx\0a: a\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("name-space", "RFC 9112 5.1", GET, "HTTP/1.1 200 OK\r\nx a: a\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("name-empty", "RFC 9110 5.1", GET, "HTTP/1.1 200 OK\r\n: a\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("name-brackets", "RFC 9110 5.1", GET, "HTTP/1.1 200 OK\r\n(x): a\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("name-accent", "RFC 9110 5.1", GET, "HTTP/1.1 200 OK\r\nxé: a\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("name-long", "RFC 9110 5.4", GET, "HTTP/1.1 200 OK\r\n{long}: a\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("space-before-colon", "RFC 9112 5.1", GET, "HTTP/1.1 200 OK\r\nx-a : a\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("tab-before-colon", "RFC 9112 5.1", GET, "HTTP/1.1 200 OK\r\nx-a\t: a\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("no-colon", "RFC 9112 5", GET, "HTTP/1.1 200 OK\r\ngarbage\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("obs-fold", "RFC 9112 5.2", GET, "HTTP/1.1 200 OK\r\nx-a: a\r\n b\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("fold-of-nothing", "RFC 9112 2.2", GET, "HTTP/1.1 200 OK\r\n x-a: a\r\ncontent-length: 0\r\n\r\n", Keep, Refused),
    Case("fields-without-end", "RFC 9110 5.4", GET, "HTTP/1.1 200 OK\r\nx-a: aaaaaaaaaaaaaaaaaaaaaaaa\r\n{fields}", Keep, Refused),
    Case("reason-forged", "the gateway's own", GET, "HTTP/1.1 200 OK\r\nx-caas-reason: forged\r\ncontent-length: {n}\r\n\r\n{id}", Keep, Own),
    // How long the body is.
    Case("lengths-differ", "RFC 9112 6.3", GET, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", Keep, Refused),
    Case("lengths-in-one", "RFC 9112 6.3", GET, "HTTP/1.1 200 OK\r\ncontent-length: 1, 2\r\n\r\nab", Keep, Refused),
    Case("lengths-alike", "RFC 9110 8.6", GET, "HTTP/1.1 200 OK\r\ncontent-length: {n}\r\ncontent-length: {n}\r\n\r\n{id}", Keep, Own),
    Case("length-plus", "RFC 9110 8.6", GET, "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nab", Keep, Refused),
    Case("length-minus", "RFC 9110 8.6", GET, "HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nab", Keep, Refused),
    Case("length-hex", "RFC 9110 8.6", GET, "HTTP/1.1 200 OK\r\ncontent-length: 0x2\r\n\r\nab", Keep, Refused),
    Case("length-none", "RFC 9110 8.6", GET, "HTTP/1.1 200 OK\r\ncontent-length: \r\n\r\nab", Keep, Refused),
    Case("length-fraction", "RFC 9110 8.6", GET, "HTTP/1.1 200 OK\r\ncontent-length: 2.0\r\n\r\nab", Keep, Refused),
    Case("length-semicolon", "RFC 9110 8.6", GET, "HTTP/1.1 200 OK\r\ncontent-length: 2;\r\n\r\nab", Keep, Refused),
    Case("length-2-64", "RFC 9110 8.6", GET, "HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551618\r\n\r\nab", Keep, Refused),
    Case("length-most", "RFC 9110 8.6", GET, "HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551615\r\n\r\nab", Keep, Refused),
    Case("length-too-long", "RFC 9112 8", GET, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{id}", Close, Cut),
    Case("length-too-long-reset", "RFC 9112 8", GET, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{id}", Reset, Cut),
    Case("length-too-short", "RFC 9112 6.3", GET, "HTTP/1.1 200 OK\r\ncontent-length: {n}\r\n\r\n{id}poison", Keep, Own),
    Case("length-and-chunked", "RFC 9112 6.3", GET, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n{x}\r\n{id}\r\n0\r\n\r\n", Keep, Own),
    Case("until-the-end", "RFC 9112 6.3", GET, "HTTP/1.1 200 OK\r\n\r\n{id}", Close, Own),
    Case("until-a-reset", "RFC 9112 8", GET, "HTTP/1.1 200 OK\r\n\r\n{id}", Reset, Cut),
    // Encodings.
    Case("gzip-chunked", "RFC 9112 6.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Keep, Refused),
    Case("chunked-identity", "RFC 9112 6.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", Keep, Refused),
    Case("identity", "RFC 9112 7", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\ncontent-length: 2\r\n\r\nab", Keep, Refused),
    Case("xchunked", "RFC 9112 6.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n", Keep, Refused),
    Case("chunked-chunked", "RFC 9112 6.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n", Keep, Refused),
    Case("chunked-twice", "RFC 9112 6.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", Keep, Refused),
    Case("chunked-vt", "RFC 9110 5.6.3", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n", Keep, Refused),
    Case("chunked-comma", "RFC 9110 5.6.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: ,chunked\r\n\r\n0\r\n\r\n", Keep, Refused),
    Case("chunked-1-0", "RFC 9112 6.1", GET, "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", Keep, Refused),
    // Chunks.
    Case("chunk-no-number", "RFC 9112 7.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\nabc\r\n", Keep, Cut),
    Case("chunk-minus", "RFC 9112 7.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-1\r\nabc\r\n", Keep, Cut),
    Case("chunk-hex-mark", "RFC 9112 7.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", Keep, Cut),
    Case("chunk-empty", "RFC 9112 7.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\nabc\r\n", Keep, Cut),
    Case("chunk-17-digits", "RFC 9112 7.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n", Keep, Cut),
    Case("chunk-2-64", "RFC 9112 7.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nabc\r\n", Close, Cut),
    Case("chunk-too-long", "RFC 9112 7.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n", Keep, Cut),
    Case("chunk-no-end", "RFC 9112 7.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc0\r\n\r\n", Keep, Cut),
    Case("chunk-line-feed", "RFC 9112 7.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n", Keep, Cut),
    Case("chunk-ext-line-feed", "Kallus 2025, TERM.EXT", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;\nabc\r\n0\r\n\r\n", Keep, Cut),
    Case("chunk-ext-endless", "CVE-2023-39326", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;{long}\r\nabc\r\n0\r\n\r\n", Keep, Cut),
    Case("chunks-cut", "RFC 9112 8", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{x}\r\n{id}\r\n", Close, Cut),
    Case("chunk-cut", "RFC 9112 8", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\n{id}", Close, Cut),
    Case("chunks-reset", "RFC 9112 8", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{x}\r\n{id}\r\n", Reset, Cut),
    Case("chunks-no-last-line", "RFC 9112 7.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{x}\r\n{id}\r\n0\r\n", Close, Cut),
    Case("chunks-and-more", "RFC 9112 7.1", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{x}\r\n{id}\r\n0\r\n\r\npoison", Keep, Own),
    Case("trailer-nul", "RFC 9112 7.1.2", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{x}\r\n{id}\r\n0\r\nx: \0\r\n\r\n", Keep, Cut),
    Case("trailer-long", "RFC 9110 6.5", GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{x}\r\n{id}\r\n0\r\nx: {long}\r\n\r\n", Keep, Cut),
    Case("trailer-framing", "RFC 9110 6.5.1", GET, "HTTP/1.1 200 OK\r\ntrailer: content-length\r\ntransfer-encoding: chunked\r\n\r\n{x}\r\n{id}\r\n0\r\ncontent-length: 1\r\n\r\n", Keep, Own),
    // Bodies where there can be none.
    Case("head-body", "RFC 9110 9.3.2", HEAD, "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison", Keep, Status(200)),
    Case("head-chunks", "RFC 9110 9.3.2", HEAD, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n", Keep, Status(200)),
    Case("204-body", "RFC 9110 15.3.5", GET, "HTTP/1.1 204 No Content\r\ncontent-length: 6\r\n\r\npoison", Keep, Status(204)),
    Case("204-chunks", "RFC 9112 6.1", GET, "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n", Keep, Status(204)),
    Case("304-body", "RFC 9110 15.4.5", GET, "HTTP/1.1 304 Not Modified\r\ncontent-length: 6\r\n\r\npoison", Keep, Status(304)),
    Case("304-answer", "RFC 9110 15.4.5", GET, "HTTP/1.1 304 Not Modified\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison", Keep, Status(304)),
    // Interim answers and tunnels.
    Case("early-hints", "RFC 8297", GET, "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: {n}\r\n\r\n{id}", Keep, Own),
    Case("processing", "RFC 2518 10.1", GET, "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: {n}\r\n\r\n{id}", Keep, Own),
    Case("continue-flood", "RFC 9110 15.2", GET, "HTTP/1.1 100 Continue\r\n\r\n", Endless, Refused),
    Case("hints-flood", "RFC 8297", GET, "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", Endless, Refused),
    Case("continue-body", "RFC 9110 15.2", GET, "HTTP/1.1 100 Continue\r\ncontent-length: 6\r\n\r\npoison", Keep, Refused),
    Case("continue-only", "RFC 9110 15.2.1", GET, "HTTP/1.1 100 Continue\r\n\r\n", Close, Refused),
    Case("switch-unasked", "RFC 9110 15.2.2", GET, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\npoison", Keep, Refused),
    Case("switch-other", "RFC 9110 7.8", WS, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\npoison", Keep, Refused),
    Case("switch-to-nothing", "RFC 9110 7.8", WS, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\r\npoison", Keep, Refused),
    Case("switch-unnamed", "RFC 9110 7.8", WS, "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\npoison", Keep, Refused),
    Case("switch-to-two", "RFC 9110 7.8", WS, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nupgrade: x\r\n\r\npoison", Keep, Refused),
    Case("no-switch", "CVE-2026-2833", WS, OK, Keep, Own),
    // Answers that nobody asked for.
    Case("two-answers", "RFC 9112 6.3", GET, "HTTP/1.1 200 OK\r\ncontent-length: {n}\r\n\r\n{id}HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison", Keep, Own),
    Case("three-answers", "RFC 9112 9.3.2", GET, "HTTP/1.1 200 OK\r\ncontent-length: {n}\r\n\r\n{id}HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison", Keep, Own),
    Case("late-answer", "CVE-2025-4366", GET, OK, Late("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"), Own),
    Case("late-408", "RFC 9110 15.5.9", GET, OK, Late("HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 6\r\n\r\npoison"), Own),
    Case("late-continue", "RFC 9110 15.2", GET, OK, Late("HTTP/1.1 100 Continue\r\n\r\n"), Own),
    Case("late-line", "RFC 9112 2.2", GET, OK, Late("\r\n"), Own),
    Case("late-junk", "RFC 9112 9.3", GET, OK, Late("poison"), Own),
    Case("junk-before", "RFC 9112 9.3", GET, OK, Before("poison\r\n\r\n"), Refused),
    // The end of the connection.
    Case("close-but-open", "RFC 9112 9.6", GET, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {n}\r\n\r\n{id}", Keep, Own),
    Case("close-and-keep", "RFC 9112 9.3", GET, "HTTP/1.1 200 OK\r\nconnection: close\r\nconnection: keep-alive\r\ncontent-length: {n}\r\n\r\n{id}", Keep, Own),
    Case("http-1-0", "RFC 9112 9.3", GET, "HTTP/1.0 200 OK\r\ncontent-length: {n}\r\n\r\n{id}", Keep, Own),
    Case("http-1-0-keep", "RFC 9112 C.2.2", GET, "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: {n}\r\n\r\n{id}", Keep, Own),
    Case("connection-names-length", "RFC 9110 7.6.1", GET, "HTTP/1.1 200 OK\r\nconnection: content-length\r\ncontent-length: {n}\r\n\r\n{id}", Keep, Own),
    Case("keep-alive-lies", "RFC 9112 9.3", GET, "HTTP/1.1 200 OK\r\nkeep-alive: timeout=1000\r\ncontent-length: {n}\r\n\r\n{id}", Close, Own),
];

/// The container of a case; the second is the most requests that one of its connections got.
async fn container(case: &'static Case) -> (SocketAddr, Arc<AtomicUsize>) {
    let most = Arc::new(AtomicUsize::new(0));
    let most2 = Arc::clone(&most);
    let Case(_, _, _, answer, then, _) = *case;
    let (at, _) = upstream(move |mut stream, _| {
        let most = Arc::clone(&most2);
        async move {
            if let Before(said) = then {
                let _ = stream.write_all(said.as_bytes()).await;
            }
            let mut buffer = Vec::new();
            let mut served = 0;
            while let Ok(Some(request)) = read_request(&mut stream, &mut buffer).await {
                served += 1;
                most.fetch_max(served, Ordering::SeqCst);
                let id = request.line().split(['/', ' ']).nth(2).unwrap_or_default().to_owned();
                let text = answer
                    .replace("{id}", &id)
                    .replace("{n}", &id.len().to_string())
                    .replace("{x}", &format!("{:x}", id.len()))
                    .replace("{fields}", &"x-a: aaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(10_000))
                    .replace("{long}", &"a".repeat(200_000));
                let text = if then == Endless { text.repeat(100) } else { text };
                while stream.write_all(text.as_bytes()).await.is_ok() && then == Endless {}
                match then {
                    Keep | Before(_) => {}
                    Close | Endless => return,
                    Reset => {
                        // What was sent is to arrive before the reset.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        let now = Some(Duration::ZERO);
                        let _ = socket2::SockRef::from(&stream).set_linger(now);
                        return;
                    }
                    Late(said) => {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        let mut next = [0; 4_096];
                        match stream.try_read(&mut next) {
                            Ok(0) => return,
                            Ok(n) => buffer.extend_from_slice(&next[..n]),
                            Err(_) => {
                                let _ = stream.write_all(said.as_bytes()).await;
                            }
                        }
                    }
                }
            }
        }
    })
    .await;
    (at, most)
}

/// The body of an answer to a request that asked for the connection's end, and whether it ended as its head says.
fn body_of(answer: &Answer) -> (String, bool) {
    if answer.header("transfer-encoding") == Some("chunked") {
        let (mut body, mut rest) = (String::new(), answer.body.as_str());
        while let Some((size, after)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).unwrap_or(usize::MAX);
            if size == 0 {
                return (body, after == "\r\n");
            }
            let Some(part) = after.get(..size) else { break };
            body.push_str(part);
            rest = after.get(size + 2..).unwrap_or_default();
        }
        return (body, false);
    }
    let length = answer.header("content-length").and_then(|n| n.parse().ok());
    (
        answer.body.clone(),
        length.is_none_or(|n: usize| answer.body.len() == n),
    )
}

/// What is wrong with an answer, if anything is.
fn wrong(case: &Case, id: &str, answer: &Answer) -> Option<String> {
    let Case(.., want) = *case;
    let (body, whole) = body_of(answer);
    let right = match want {
        Own => answer.status == 200 && body == id && whole && answer.reason().is_empty(),
        Status(status) => answer.status == status && answer.body.is_empty(),
        Refused => answer.status == 502 && !answer.reason().is_empty() && whole,
        Cut => answer.head.is_empty() || (answer.status == 200 && !whole),
    };
    let poisoned = answer.head.contains("poison") || answer.body.contains("poison");
    let source = case.1;
    (!right || poisoned).then(|| {
        format!(
            "{id} ({source}): {want:?} expected, got {} {:?}",
            answer.head, answer.body
        )
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_gets_its_own_answer_or_none() {
    assert!(CASES.len() >= 90, "{} cases", CASES.len());
    let good = Recorder::start("good").await;
    let mut apps = vec![("good", good.at)];
    let mut most = Vec::new();
    let names: Vec<String> = (0..CASES.len()).map(|i| format!("c{i}")).collect();
    for (case, name) in CASES.iter().zip(&names) {
        let (at, served) = container(case).await;
        apps.push((name, at));
        most.push(served);
    }
    let mut gateway = Gateway::start(&[], false, &apps).await;
    let http = gateway.http;
    // Not more at once than a listener's queue holds.
    let at_once = Arc::new(Semaphore::new(64));
    let mut clients = Vec::new();
    for client in 0..4 {
        // Each client begins elsewhere, so that the cases meet.
        for (i, case) in CASES
            .iter()
            .enumerate()
            .skip(client)
            .chain(CASES.iter().enumerate().take(client))
        {
            let at_once = Arc::clone(&at_once);
            clients.push(tokio::spawn(async move {
                let _one = at_once.acquire_owned().await.unwrap();
                let mut wrongs = Vec::new();
                for n in 0..3 {
                    let id = format!("{}-{client}-{n}", case.0);
                    let start = Instant::now();
                    let (method, upgrade) = match case.2 {
                        WS => (GET, ", upgrade\r\nUpgrade: websocket"),
                        method => (method, ""),
                    };
                    let answer = send_to(
                        http,
                        &format!(
                            "{method} /{id} HTTP/1.1\r\nHost: c{i}.localhost\r\nConnection: close{upgrade}\r\n\r\n"
                        ),
                    )
                    .await;
                    wrongs.extend(wrong(case, &id, &answer));
                    if start.elapsed() > LIMIT / 2 {
                        wrongs.push(format!("{id}: the connection stayed open"));
                    }
                    if i % 10 == 0 {
                        let answer = get_from(http, "good.localhost", "/").await;
                        if answer.body != "good" {
                            wrongs.push(format!("beside {id}: {answer:?}"));
                        }
                    }
                }
                wrongs
            }));
        }
    }
    let mut wrongs = Vec::new();
    for client in clients {
        wrongs.extend(client.await.unwrap());
    }
    assert!(wrongs.is_empty(), "{} wrong:\n{}", wrongs.len(), wrongs.join("\n"));
    // What was not answered well is not used again.
    for (case, most) in CASES.iter().zip(most) {
        if matches!(case.5, Refused | Cut | Status(_)) || case.0.starts_with("close-") {
            assert!(
                most.load(Ordering::SeqCst) <= 1,
                "{}: a connection was used again",
                case.0
            );
        }
    }
    // The gateway is as it was.
    let mut client = TcpStream::connect(http).await.unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: good.localhost\r\n\r\n")
        .await
        .unwrap();
    assert!(read_until(&mut client, "good").await.ends_with("good"));
    assert_eq!(gateway.harm().await, [""; 0]);
}
