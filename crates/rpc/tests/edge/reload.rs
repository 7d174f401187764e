//! Files that are renewed while the server runs (RELIABILITY T4, T5).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use epigraph_rpc::peer::Log;
use epigraph_rpc::{ClientTls, DomainFiles, Reload, Reloader, TlsFiles, Usage};
use rcgen::date_time_ymd;
use rustls::version::TLS13;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::support::*;

struct Files {
    dir: TempDir,
}

impl Files {
    fn new(ca: &Ca) -> Files {
        let files = Files { dir: tempfile::tempdir().unwrap() };
        files.own(&ca.issue(server_leaf(SERVER)));
        files.write("ca.pem", &ca.pem);
        files.write("ca.crl", ca.crl(&[]).der());
        files.write("denied", "# nobody\n");
        files
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.dir.path().join(name), bytes).unwrap();
    }

    fn own(&self, own: &Issued) {
        self.write("server.pem", &own.chain);
        self.write("server.key", &own.key);
        fs::set_permissions(self.dir.path().join("server.key"), Permissions::from_mode(0o600)).unwrap();
    }

    fn open(&self) -> Result<Reloader, epigraph_rpc::TlsError> {
        let path = |name: &str| self.dir.path().join(name);
        let files = TlsFiles {
            certificate: path("server.pem"),
            key: path("server.key"),
            domains: vec![DomainFiles {
                domain: "test.example".into(),
                bundle: path("ca.pem"),
                revocation_lists: vec![path("ca.crl")],
            }],
            denied: Some(path("denied")),
        };
        Reloader::open(files, clock())
    }
}

/// T5, at the start. Broken to see it fail: a file that cannot be read taken for an empty one, in both places that read.
#[test]
fn files_of_no_use_refuse_the_start() {
    let ca = Ca::new();
    let check = |name: &str, bytes: Option<&[u8]>, expected: &str| {
        let files = Files::new(&ca);
        files.open().unwrap();
        match bytes {
            Some(bytes) => files.write(name, bytes),
            None => fs::remove_file(files.dir.path().join(name)).unwrap(),
        }
        let error = files.open().unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(expected), "{error}");
    };
    for name in ["server.pem", "server.key", "ca.pem", "ca.crl", "denied"] {
        check(name, None, "No such file");
    }
    check("ca.crl", Some(b"rot"), "this is no revocation list");
    check("ca.crl", Some(ca.crl_until(&[], date_time_ymd(2029, 12, 31)).der()), "expired");
    check("denied", Some(b"everybody\n"), "line 1: \"everybody\" denies nobody");
    check("denied", Some(b"\xff\n"), "not UTF-8");
    check("ca.crl", Some(&vec![b' '; (4 << 20) + 1]), "more than 4194304 bytes");
}

/// T5, while the server runs. Broken to see it fail: the new digest kept before the files are found good.
#[tokio::test]
async fn the_last_good_files_stay_in_force() {
    let ca = Ca::new();
    let files = Files::new(&ca);
    files.write("ca.crl", ca.crl(&[7]).der());
    let mut reloader = files.open().unwrap();
    let mut server = Server::start_with(Arc::clone(reloader.tls())).await;
    let (bad, good) = (ca.client_with(READER, 7), ca.client_with(APPENDER, 8));
    assert_eq!(reloader.reload().unwrap(), Reload::Unchanged);
    files.write("ca.crl", "rot");
    for _ in 0..2 {
        assert!(reloader.reload().unwrap_err().to_string().contains("this is no revocation list"));
        server.log(&bad).checkpoint(ORIGIN).await.unwrap_err();
        assert!(server.refusal().await.contains("revoked"));
        server.log(&good).checkpoint(ORIGIN).await.unwrap();
    }
    // A certificate that is there before its key.
    files.write("ca.crl", ca.crl(&[]).der());
    let next = ca.issue(server_leaf(SERVER));
    files.write("server.pem", &next.chain);
    assert!(reloader.reload().is_err());
    server.log(&bad).checkpoint(ORIGIN).await.unwrap_err();
    assert!(server.refusal().await.contains("revoked"));
    files.own(&next);
    assert_eq!(reloader.reload().unwrap(), Reload::Replaced);
    server.log(&bad).checkpoint(ORIGIN).await.unwrap();
}

/// The certificate that the server shows to a new connection.
async fn shown(server: &Server, ca: &Ca) -> Vec<u8> {
    let own = ca.issue(client_leaf(READER));
    let mut stream = server.connect(&ca.raw(Some(&own), &TLS13)).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    stream.read_u8().await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// T4: server certificate, client CA, revocation list and deny list, one after the other, under load. Broken to see it
/// fail: every connection cut at a replacement.
#[tokio::test]
async fn renewing_everything_under_load_fails_no_call() {
    let (ca, new_ca) = (Ca::new(), Ca::named("next CA"));
    let files = Files::new(&ca);
    let mut reloader = files.open().unwrap();
    let server = Server::start_with(Arc::clone(reloader.tls())).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (answered, mut answers) = mpsc::channel(1);
    let mut load = Vec::new();
    for name in [READER, APPENDER] {
        let (log, stop, answered) = (server.log(&ca.client(name)), Arc::clone(&stop), answered.clone());
        load.push(tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                log.checkpoint(ORIGIN).await.unwrap();
                let _ = answered.try_send(());
            }
        }));
    }
    drop(answered);
    let before = shown(&server, &ca).await;
    let bundle = format!("{}{}", ca.pem, new_ca.pem);
    let lists = format!("{}{}", ca.crl(&[]).pem().unwrap(), new_ca.crl(&[]).pem().unwrap());
    let steps: [&dyn Fn(); 4] = [
        &|| files.own(&ca.issue(server_leaf(SERVER))),
        &|| {
            files.write("ca.pem", &bundle);
            files.write("ca.crl", &lists);
        },
        &|| {
            files
                .write("ca.crl", format!("{}{}", ca.crl(&[7]).pem().unwrap(), new_ca.crl(&[]).pem().unwrap()))
        },
        &|| files.write("denied", "serial:09\n"),
    ];
    for step in steps {
        step();
        assert_eq!(reloader.reload().unwrap(), Reload::Replaced);
        for _ in 0..50 {
            answers.recv().await.unwrap();
        }
    }
    assert_ne!(shown(&server, &ca).await, before);
    let own = new_ca.issue(client_leaf(READER)).load(Usage::Client).unwrap();
    let next = ClientTls::new(own, ca.trust(), clock()).unwrap();
    Log::new(&server.address, &next, &name(SERVER)).unwrap().checkpoint(ORIGIN).await.unwrap();
    stop.store(true, Ordering::SeqCst);
    drop(answers);
    for task in load {
        task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_files_are_looked_at_again_and_again() {
    const INTERVAL: Duration = Duration::from_secs(5);
    let ca = Ca::new();
    let files = Files::new(&ca);
    let reloader = files.open().unwrap();
    let (tell, mut told) = mpsc::unbounded_channel();
    let start = tokio::time::Instant::now();
    tokio::spawn(
        reloader.run(INTERVAL, move |result| tell.send(result.map_err(|e| e.to_string())).unwrap_or(())),
    );
    assert_eq!(told.recv().await.unwrap(), Ok(Reload::Unchanged));
    assert_eq!(start.elapsed(), INTERVAL);
    files.write("denied", "rot");
    assert!(told.recv().await.unwrap().unwrap_err().contains("denies nobody"));
    assert!(told.recv().await.unwrap().unwrap_err().contains("denies nobody"));
    files.write("denied", READER);
    assert_eq!(told.recv().await.unwrap(), Ok(Reload::Replaced));
}
