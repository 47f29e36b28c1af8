//! What a daemon tells of itself in numbers: `GET /metrics`, and the samples in the answer.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// A port that nobody listens on.
pub(crate) fn free_address() -> Result<String> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.to_string())
}

/// `GET /metrics`.
///
/// # Errors
/// Nobody answers, or something else.
pub(crate) fn get(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).context("the metrics do not answer")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "the metrics answer {answer}");
    Ok(answer)
}

/// The values of all samples that begin so.
pub(crate) fn samples<'a>(metrics: &'a str, name: &str) -> impl Iterator<Item = f64> + use<'a> {
    let name = name.to_owned();
    metrics.lines().filter(move |line| line.starts_with(&name)).filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
}
