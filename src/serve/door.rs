//! The door of a process that serves: its socket, its certificates, which are read again when they change, who may do what,
//! and what is counted. What lies behind is not its business.

use std::net::SocketAddr;
use std::time::Duration;

use epigraph_rpc::tls::{Reload, Reloader, TlsError};
use epigraph_rpc::{Authorizer, Grant, Routes};
use tokio::net::TcpListener;

use crate::config::tls::ProcessTls;
use crate::failure::{Failure, Outcome};
use crate::metrics::Calls;
use crate::runtime;

/// A door that is not open yet.
pub struct Door {
    reloader: Reloader,
    reload_interval: Duration,
    authorizer: Authorizer,
    reflection: bool,
    calls: Calls,
}

impl Door {
    /// Reads certificates and grants. With `reflection` it says to whoever is granted anything which calls there are.
    pub fn new(tls: &ProcessTls, grants: Vec<Grant>, reflection: bool) -> Outcome<Door> {
        let reloader = tls.accepting(runtime::clock())?;
        let calls = Calls::new(reloader.tls());
        let authorizer = Authorizer::new(grants).map_err(Failure::usage)?;
        Ok(Door { reloader, reload_interval: tls.reload_interval(), authorizer, reflection, calls })
    }

    /// What is counted here.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Serves until `shutdown` is over and the calls under way are.
    pub async fn serve(
        self,
        listener: TcpListener,
        routes: Routes,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Outcome {
        let Door { reloader, reload_interval, authorizer, reflection, calls } = self;
        let routes =
            if reflection { epigraph_rpc::with_reflection(routes).map_err(Failure::state)? } else { routes };
        let (tls, entropy) = (reloader.tls().clone(), runtime::entropy());
        let served =
            epigraph_rpc::serve(listener, tls, authorizer, routes, calls.hooks(&*entropy), entropy, shutdown);
        let mut said = String::new();
        let reloading = reloader.run(reload_interval, |outcome| {
            calls.looked(&outcome);
            tell(outcome, &mut said);
        });
        tokio::select! {
            () = served => {}
            _ = reloading => {}
        }
        Ok(())
    }
}

/// An error stands until the files are in order again, and is told once.
fn tell(outcome: Result<Reload, TlsError>, said: &mut String) {
    match outcome {
        Ok(Reload::Unchanged) => said.clear(),
        Ok(Reload::Replaced) => {
            said.clear();
            tracing::info!("certificates, trust and revocations were read again and are in force");
        }
        Err(error) => {
            let error = error.to_string();
            if error != *said {
                tracing::error!(%error, "the files of [tls] are not in order; what was in force before stays in force");
                *said = error;
            }
        }
    }
}

/// `table` is where the configuration says so.
pub async fn listen(address: SocketAddr, table: &str) -> Outcome<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::usage(format!(
            "cannot listen on {address}: {error}. Stop the program that uses it, or set another [{table}] address and tell \
             whoever uses it"
        ))
    })
}
