//! The door for applications that speak Epigraph's own protocol: served as everything of ours is, to those whose names the door's
//! list has.

mod service;

use std::sync::Arc;
use std::time::Duration;

use epigraph_core::Clock;
use epigraph_event::decode::mapped::Mapping;
use epigraph_rpc::tls::{DomainFiles, GuestFiles, GuestPattern, Reload, Reloader, TlsFiles};
use epigraph_rpc::{
    Authorizer, Grant, Logs, OnRefused, Role, Routes, SpiffePattern, collector_service, log_refused, serve,
};
use tokio::net::TcpListener;
use tokio::sync::watch;

use self::service::CollectorServer;
use super::desk::Desk;
use crate::failure::{Failure, Outcome};
use crate::runtime;

/// How often the files of certificates are looked at, as at the other doors.
const RELOAD: Duration = Duration::from_secs(2);

/// A door that nobody is let in at yet.
pub struct Native {
    reloader: Reloader,
    authorizer: Authorizer,
    mapping: Arc<Mapping>,
}

impl Native {
    /// Reads certificates. The names on the list are of this trust domain.
    pub fn open(
        files: GuestFiles,
        trust_domain: &str,
        mapping: Mapping,
        clock: Arc<dyn Clock>,
    ) -> Outcome<Native> {
        let grants: Result<Vec<Grant>, _> = files.clients.iter().map(grant).collect();
        let authorizer = Authorizer::new(grants?).map_err(Failure::usage)?;
        let domain = DomainFiles {
            domain: trust_domain.to_owned(),
            bundle: files.client_ca,
            revocation_lists: Vec::new(),
        };
        let files =
            TlsFiles { certificate: files.certificate, key: files.key, domains: vec![domain], denied: None };
        let reloader = Reloader::open(files, clock).map_err(Failure::usage)?;
        Ok(Native { reloader, authorizer, mapping: Arc::new(mapping) })
    }

    /// Serves until `closing` says true and the streams have ended.
    pub async fn serve(self, listener: TcpListener, desk: Arc<Desk>, mut closing: watch::Receiver<bool>) {
        let Native { reloader, authorizer, mapping } = self;
        let (log, counts) = (log_refused(), Arc::clone(desk.counts()));
        let on_refused: OnRefused = Arc::new(move |address, why| {
            counts.refused(why.kind());
            log(address, why);
        });
        let server = CollectorServer::new(desk, mapping, closing.clone());
        let routes = Routes::new(collector_service(server));
        let (tls, entropy) = (Arc::clone(reloader.tls()), runtime::entropy());
        let closed = async move { drop(closing.wait_for(|closing| *closing).await) };
        let serving = serve(listener, tls, authorizer, routes, on_refused, entropy, closed);
        let reloading = reloader.run(RELOAD, |outcome| match outcome {
            Ok(Reload::Unchanged) => {}
            Ok(Reload::Replaced) => tracing::info!("certificates of a door were read again and are in force"),
            Err(error) => tracing::error!(%error, "the files of [door.tls] are not in order; what was in force stays in force"),
        });
        tokio::select! {
            () = serving => {}
            _ = reloading => {}
        }
    }
}

/// The configuration has checked that each is a pattern of SPIFFE names.
fn grant(client: &GuestPattern) -> Outcome<Grant> {
    let text = match client {
        GuestPattern::Anyone => "*".to_owned(),
        GuestPattern::Named(name) => name.clone(),
        GuestPattern::Below(base) => format!("{base}*"),
    };
    let spiffe: SpiffePattern = text.parse().map_err(Failure::usage)?;
    Ok(Grant { spiffe, roles: [Role::Appender].into(), logs: Logs::All })
}
