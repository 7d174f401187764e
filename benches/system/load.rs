//! The drivers: keep a number of calls in flight, or a stream busy, for a while and time each. The same code for both
//! sides of a comparison.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::{Status, Streaming};

use crate::clock;
use crate::process::Served;

/// A connection and what is called on it. Clones share the connection.
pub(crate) trait Call: Clone + Send + 'static {
    /// One call, from the request to the checked answer.
    fn call(&mut self) -> impl Future<Output = Result<(), Status>> + Send;
}

/// What a while of calls gave.
#[derive(Clone, Default)]
pub(crate) struct Load {
    /// From the first request to the last answer.
    pub(crate) elapsed: Duration,
    /// What was done, in the unit of the comparison.
    pub(crate) done: u64,
    /// Of each call, in no order.
    pub(crate) latencies: Vec<Duration>,
    /// What the server's process used of the processors meanwhile.
    pub(crate) server_cpu: Duration,
}

impl Load {
    /// What was done in a second.
    pub(crate) fn rate(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64()
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
    load.done = load.latencies.len() as u64;
    load.server_cpu = server.cpu()? - cpu;
    Ok(load)
}

/// Calls again and again for `time`, one call after the other, and rests before each.
pub(crate) async fn drive_resting<C: Call>(
    server: &Served,
    connection: &C,
    rest: Duration,
    time: Duration,
) -> anyhow::Result<Load> {
    let cpu = server.cpu()?;
    let start = clock::now();
    let (mut connection, mut load) = (connection.clone(), Load::default());
    while start.elapsed() < time {
        tokio::time::sleep(rest).await;
        let sent = clock::now();
        connection.call().await?;
        load.latencies.push(sent.elapsed());
    }
    load.elapsed = start.elapsed();
    load.done = load.latencies.len() as u64;
    load.server_cpu = server.cpu()? - cpu;
    Ok(load)
}

/// Calls `per_second` times a second for `time`, whatever becomes of the calls before; the connections take turns. A call's time
/// counts from when it was due.
pub(crate) async fn drive_at<C: Call>(
    server: &Served,
    connections: &[C],
    per_second: u32,
    time: Duration,
) -> anyhow::Result<Load> {
    let cpu = server.cpu()?;
    let start = clock::now();
    let mut callers = JoinSet::new();
    let count = time.as_nanos() * u128::from(per_second) / Duration::from_secs(1).as_nanos();
    for number in 0..u32::try_from(count)? {
        let due = start + Duration::from_secs(1) * number / per_second;
        tokio::time::sleep_until(due.into()).await;
        let mut connection = connections[number as usize % connections.len()].clone();
        callers.spawn(async move {
            connection.call().await?;
            Ok::<_, Status>(due.elapsed())
        });
    }
    let mut load = Load::default();
    while let Some(ended) = callers.join_next().await {
        load.latencies.push(ended??);
    }
    load.elapsed = start.elapsed();
    load.done = load.latencies.len() as u64;
    load.server_cpu = server.cpu()? - cpu;
    Ok(load)
}

/// Both ends of a stream of requests and answers: its first request is under way.
pub(crate) struct Exchange<Q, A> {
    pub(crate) requests: mpsc::Sender<Q>,
    pub(crate) answers: Streaming<A>,
}

/// Keeps `window` requests in flight on each stream for `time`. The answer to the first request of a stream was taken.
pub(crate) async fn drive_streams<Q: Clone + Send + Sync + 'static, A: Send + 'static>(
    server: &Served,
    streams: &mut Vec<Exchange<Q, A>>,
    request: &Q,
    window: usize,
    time: Duration,
) -> anyhow::Result<Load> {
    let cpu = server.cpu()?;
    let start = clock::now();
    let mut running = JoinSet::new();
    for mut stream in streams.drain(..) {
        let request = request.clone();
        running.spawn(async move {
            let mut latencies = Vec::with_capacity(1024);
            let mut sent = VecDeque::with_capacity(window);
            for _ in 0..window {
                sent.push_back(clock::now());
                stream.requests.send(request.clone()).await?;
            }
            while let Some(at) = sent.pop_front() {
                anyhow::ensure!(stream.answers.message().await?.is_some(), "a stream ended");
                latencies.push(at.elapsed());
                if start.elapsed() < time {
                    sent.push_back(clock::now());
                    stream.requests.send(request.clone()).await?;
                }
            }
            Ok((stream, latencies))
        });
    }
    let mut load = Load::default();
    while let Some(ended) = running.join_next().await {
        let (stream, latencies) = ended??;
        streams.push(stream);
        load.latencies.extend(latencies);
    }
    load.elapsed = start.elapsed();
    load.done = load.latencies.len() as u64;
    load.server_cpu = server.cpu()? - cpu;
    Ok(load)
}

/// Runs yardstick and subject in turn, and each once before to warm up.
pub(crate) async fn alternate(
    plan: &crate::Plan,
    mut yardstick: impl AsyncFnMut(Duration) -> anyhow::Result<Load>,
    mut subject: impl AsyncFnMut(Duration) -> anyhow::Result<Load>,
) -> anyhow::Result<Vec<[Load; 2]>> {
    yardstick(plan.warm_up).await?;
    subject(plan.warm_up).await?;
    let mut rounds = Vec::with_capacity(plan.rounds);
    for _ in 0..plan.rounds {
        rounds.push([yardstick(plan.half_round).await?, subject(plan.half_round).await?]);
    }
    Ok(rounds)
}
