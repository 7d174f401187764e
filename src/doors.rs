//! The doors of a collector, where senders push events: each its socket, its certificates, its protocol and its counts. Behind every
//! door is the same [`Desk`], which answers once events are durable in the spool.

mod body;
pub mod desk;
mod http;
mod native;
mod syslog;

mod otlp {
    //! OpenTelemetry logs.
    pub mod service;
}

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use epigraph_collector::intake::Command;
use epigraph_core::Clock;
use epigraph_rpc::guests::{Guest, GuestRefused, let_in};
use epigraph_rpc::tls::{GuestTls, Reload};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::desk::{Counts, Desk, Held};
use self::native::Native;
use crate::config::doors::{DoorConfig, DoorKind};
use crate::failure::{Failure, Outcome};
use crate::serve::door::listen;

/// How often the files of certificates are looked at: a renewed one is served within five seconds.
const RELOAD: Duration = Duration::from_secs(2);

/// Doors that listen, and that nobody is let in at yet.
pub struct Doors {
    open: Vec<Open>,
}

struct Open {
    name: String,
    kind: DoorKind,
    listener: TcpListener,
    address: SocketAddr,
    behind: Behind,
    desk: Arc<Desk>,
}

/// What lets senders in.
enum Behind {
    Guests(Option<Arc<GuestTls>>),
    Native(Native),
}

impl Doors {
    /// Reads certificates, and takes the sockets. The nth door's events are counted for the nth name of the intake's `pushing`.
    pub async fn open(
        doors: &[DoorConfig],
        commands: &Sender<Command>,
        clock: &Arc<dyn Clock>,
    ) -> Outcome<Doors> {
        let held = Held::of_all();
        let mut open = Vec::new();
        for (place, door) in doors.iter().enumerate() {
            let DoorConfig { name, kind, address, tenant, tls, mapping, trust_domain } = door.clone();
            let behind = match (kind, tls) {
                (DoorKind::Native, Some(files)) => {
                    Native::open(files, &trust_domain, mapping, Arc::clone(clock)).map(Behind::Native)
                }
                (_, None) => Ok(Behind::Guests(None)),
                (_, Some(files)) => GuestTls::open(files, Arc::clone(clock))
                    .map(|tls| Behind::Guests(Some(Arc::new(tls))))
                    .map_err(Failure::usage),
            };
            let behind = behind.map_err(|error| Failure::usage(format!("[[door]] {name}: {error}")))?;
            let listener = listen(address, "[door]").await?;
            let address = listener.local_addr().map_err(Failure::state)?;
            let desk = Desk::new(place, tenant, commands.clone(), Arc::clone(clock), Arc::clone(&held));
            open.push(Open { name, kind, listener, address, behind, desk: Arc::new(desk) });
        }
        Ok(Doors { open })
    }

    /// Where they are.
    pub fn addresses(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        self.open.iter().map(|door| (door.name.as_str(), door.address))
    }

    /// What is counted at each.
    pub fn counts(&self) -> Vec<(String, Arc<Counts>)> {
        self.open.iter().map(|door| (door.name.clone(), Arc::clone(door.desk.counts()))).collect()
    }

    /// Lets senders in until `closing` says true, and lets them finish what they have begun.
    pub async fn serve(self, closing: watch::Receiver<bool>) {
        let mut serving = JoinSet::new();
        for door in self.open {
            let closing = closing.clone();
            serving.spawn(door.serve(closing));
        }
        while serving.join_next().await.is_some() {}
        let mut closing = closing;
        drop(closing.wait_for(|closing| *closing).await);
    }
}

impl Open {
    async fn serve(self, closing: watch::Receiver<bool>) {
        let Open { name, kind, listener, behind, desk, .. } = self;
        match behind {
            Behind::Native(native) => native.serve(listener, desk, closing).await,
            Behind::Guests(tls) => {
                tokio::select! {
                    () = let_guests_in(&name, kind, listener, tls.clone(), desk, closing) => {}
                    () = keep(&name, tls) => {}
                }
            }
        }
    }
}

async fn let_guests_in(
    name: &str,
    kind: DoorKind,
    listener: TcpListener,
    tls: Option<Arc<GuestTls>>,
    desk: Arc<Desk>,
    mut closing: watch::Receiver<bool>,
) {
    let (counts, name) = (Arc::clone(desk.counts()), name.to_owned());
    let on_refused = move |address: SocketAddr, why: &GuestRefused| {
        counts.refused(why.kind());
        // Strangers cause it: it is counted, and told to whoever looks for it.
        tracing::debug!(door = name, %address, %why, "a sender was not let in");
    };
    let attend = move |guest: Guest| {
        let desk = Arc::clone(&desk);
        async move {
            match kind {
                DoorKind::Otlp => otlp::service::attend(guest, desk).await,
                DoorKind::K8sWebhook => http::attend(guest, desk, http::Spoken::K8sWebhook).await,
                DoorKind::Cloudevents => http::attend(guest, desk, http::Spoken::CloudEvents).await,
                DoorKind::Syslog => syslog::attend(guest, desk).await,
                // It has a server of its own.
                DoorKind::Native => {}
            }
        }
    };
    let closed = async move { drop(closing.wait_for(|closing| *closing).await) };
    let_in(listener, tls, on_refused, attend, closed).await;
}

/// Keeps a door's TLS to its files, for ever. An error is told once, as long as it is the same.
async fn keep(name: &str, tls: Option<Arc<GuestTls>>) {
    let Some(tls) = tls else { return std::future::pending().await };
    let mut said = String::new();
    loop {
        sleep(RELOAD).await;
        let looking = Arc::clone(&tls);
        let Ok(outcome) = tokio::task::spawn_blocking(move || looking.reload()).await else { continue };
        match outcome {
            Ok(Reload::Unchanged) => said.clear(),
            Ok(Reload::Replaced) => {
                said.clear();
                tracing::info!(door = name, "certificates were read again and are in force");
            }
            Err(error) if error.to_string() != said => {
                said = error.to_string();
                tracing::error!(door = name, %error, "the files of [door.tls] are not in order; what was in force stays in force");
            }
            Err(_) => {}
        }
    }
}
