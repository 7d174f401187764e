//! The driver: keeps a number of calls in flight for a while and times each. The same code for both sides of a
//! comparison.

use std::time::Duration;

use tokio::task::JoinSet;
use tonic::Status;

use crate::clock;
use crate::process::Served;

/// A connection and what is called on it. Clones share the connection.
pub(crate) trait Call: Clone + Send + 'static {
    /// One call, from the request to the checked answer.
    fn call(&mut self) -> impl Future<Output = Result<(), Status>> + Send;
}

/// What a while of calls gave.
#[derive(Default)]
pub(crate) struct Load {
    /// From the first request to the last answer.
    pub(crate) elapsed: Duration,
    /// Of each call, in no order.
    pub(crate) latencies: Vec<Duration>,
    /// What the server's process used of the processors meanwhile.
    pub(crate) server_cpu: Duration,
}

impl Load {
    /// Calls per second.
    pub(crate) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }
}

/// Keeps `per_connection` calls to `server` in flight on each connection for `time`: whoever got an answer calls again.
pub(crate) async fn drive<C: Call>(
    server: &Served,
    connections: &[C],
    per_connection: usize,
    time: Duration,
) -> anyhow::Result<Load> {
    let cpu = server.cpu()?;
    let start = clock::now();
    let mut callers = JoinSet::new();
    for connection in connections {
        for _ in 0..per_connection {
            let mut connection = connection.clone();
            callers.spawn(async move {
                let mut latencies = Vec::with_capacity(1024);
                while start.elapsed() < time {
                    let sent = clock::now();
                    connection.call().await?;
                    latencies.push(sent.elapsed());
                }
                Ok::<_, Status>(latencies)
            });
        }
    }
    let mut load = Load::default();
    while let Some(ended) = callers.join_next().await {
        load.latencies.extend(ended??);
    }
    load.elapsed = start.elapsed();
    load.server_cpu = server.cpu()? - cpu;
    Ok(load)
}
