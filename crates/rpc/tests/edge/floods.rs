//! HTTP/2 as it is not meant (RELIABILITY N3, N4, N5): frames by hand (RFC 9113) over TLS, from somebody whose certificate
//! is good. The connection is closed, and whoever is served beside it notices nothing.

use epigraph_rpc::connection::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use epigraph_rpc::{CallError, MAX_SENDING_BYTES_PER_IDENTITY, Reason, v1};
use prost::Message;
use rustls::version::TLS13;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A literal header field that is not indexed, not Huffman coded (RFC 7541 section 6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [&[0][..], &text(name), &text(value)].concat()
}

fn call(path: &str) -> Vec<u8> {
    [
        field(":method", "POST"),
        field(":scheme", "https"),
        field(":authority", "localhost"),
        field(":path", path),
        field("content-type", "application/grpc"),
        field("te", "trailers"),
    ]
    .concat()
}

const CHECKPOINT_PATH: &str = "/epigraph.v1.LogService/GetCheckpoint";
const APPEND_PATH: &str = "/epigraph.v1.LogService/Append";

async fn connected(server: &Server, ca: &Ca) -> TlsStream<TcpStream> {
    let own = ca.issue(client_leaf(APPENDER));
    let mut stream = server.connect(&ca.raw(Some(&own), &TLS13)).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

/// The error code of the GOAWAY that ends the connection; `None` if it ends without one. What the server sends before is
/// read over.
async fn ended(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<u32> {
    let mut code = None;
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return code;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if stream.read_exact(&mut payload).await.is_err() {
            return code;
        }
        if head[3] == GOAWAY {
            code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
    }
}

/// Sends pieces until the server takes no more; the connection must end, and an honest client beside it be served
/// before and after.
async fn check_closed(what: &str, pieces: impl Fn(u32) -> Vec<u8> + Send + 'static, codes: &[u32]) {
    let ca = Ca::new();
    let server = Server::start(&ca).await;
    let honest = server.log(&ca.client(READER));
    honest.checkpoint(ORIGIN).await.unwrap();
    let (mut reading, mut writing) = tokio::io::split(connected(&server, &ca).await);
    let flood = tokio::spawn(async move {
        for round in 0..20_000 {
            if writing.write_all(&pieces(round)).await.is_err() {
                return true;
            }
        }
        writing.shutdown().await.unwrap();
        false
    });
    let code = ended(&mut reading).await;
    assert!(code.is_none_or(|code| codes.contains(&code)), "{what}: {code:?}");
    honest.checkpoint(ORIGIN).await.unwrap();
    drop(reading);
    assert!(flood.await.unwrap(), "{what}: everything was taken");
    assert_eq!(honest.checkpoint(ORIGIN).await.unwrap(), CHECKPOINT, "{what}");
}

const ENHANCE_YOUR_CALM: u32 = 11;
const PROTOCOL_ERROR: u32 = 1;
const COMPRESSION_ERROR: u32 = 9;

/// N3. Broken to see it fail: no limit on pending resets.
#[tokio::test]
async fn rapid_reset_ends_the_connection() {
    let pieces = |round: u32| {
        let stream = 2 * round + 1;
        let open = frame(HEADERS, END_HEADERS, stream, &call(CHECKPOINT_PATH));
        [open, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    };
    check_closed("rapid reset", pieces, &[ENHANCE_YOUR_CALM]).await;
}

/// N3: a header that never ends.
#[tokio::test]
async fn a_flood_of_continuations_ends_the_connection() {
    let pieces = |round: u32| match round {
        0 => frame(HEADERS, 0, 1, &call(CHECKPOINT_PATH)),
        _ => frame(CONTINUATION, 0, 1, &field("x", &"y".repeat(100)).repeat(100)),
    };
    check_closed("continuation", pieces, &[ENHANCE_YOUR_CALM, PROTOCOL_ERROR, COMPRESSION_ERROR]).await;
}

/// N3: streams that break the protocol, so that this side has to reset them (CVE-2025-8671).
#[tokio::test]
async fn streams_that_provoke_resets_end_the_connection() {
    let pieces = |round: u32| {
        let stream = 2 * round + 1;
        let open = frame(HEADERS, END_HEADERS, stream, &call(APPEND_PATH));
        // A window that is larger than a window can be is an error of the stream.
        [open, frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes())].concat()
    };
    check_closed("provoked resets", pieces, &[ENHANCE_YOUR_CALM]).await;
}

/// The gRPC status of the answer to a call with this body, on a connection of its own.
async fn status(server: &Server, ca: &Ca, extra: &[u8], body: &[u8]) -> String {
    let own = ca.issue(client_leaf(APPENDER));
    let stream = server.connect(&ca.raw(Some(&own), &TLS13)).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    let driver = tokio::spawn(connection);
    let mut request = http::Request::post(format!("https://localhost{APPEND_PATH}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Ok(encoding) = str::from_utf8(extra)
        && !encoding.is_empty()
    {
        request = request.header("grpc-encoding", encoding);
    }
    let mut sender = sender.ready().await.unwrap();
    let (answer, mut sending) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    sending.send_data(bytes::Bytes::copy_from_slice(body), true).unwrap();
    let answer = answer.await.unwrap();
    let status = answer.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_string());
    driver.abort();
    status.unwrap_or_default()
}

/// N4, N5: what claims to be longer than it may, or is no message, is refused before memory is taken for it.
#[tokio::test]
async fn bodies_that_are_no_request_are_refused() {
    let ca = Ca::new();
    let server = Server::start(&ca).await;
    const INVALID_ARGUMENT: &str = "3";
    const UNIMPLEMENTED: &str = "12";
    const OUT_OF_RANGE: &str = "11";
    const RESOURCE_EXHAUSTED: &str = "8";
    let message = |body: &[u8]| [&[0][..], &u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat();
    // A field of wire type 7; a string that ends after the message; groups in groups; a tag of eleven bytes.
    for garbage in [&[0x0f][..], b"\x0a\xff\xff\xff\xff\x0f", &[0x0b; 4_000], &[0xff; 11]] {
        assert_eq!(status(&server, &ca, b"", &message(garbage)).await, INVALID_ARGUMENT, "{garbage:?}");
    }
    // 4 GiB, it says; five bytes of it are there.
    let claims = status(&server, &ca, b"", &[0, 0xff, 0xff, 0xff, 0xff]).await;
    assert!([INVALID_ARGUMENT, OUT_OF_RANGE, RESOURCE_EXHAUSTED].contains(&claims.as_str()), "{claims}");
    // Compression is not spoken here, so that no bomb is ever unpacked.
    assert_eq!(status(&server, &ca, b"gzip", &message(b"")).await, UNIMPLEMENTED);
    let log = server.log(&ca.client(READER));
    assert_eq!(log.checkpoint(ORIGIN).await.unwrap(), CHECKPOINT);
}

/// N1: a body that is begun and never ended.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_dribbled_is_given_up_at_its_deadline() {
    let ca = Ca::new();
    let server = Server::start(&ca).await;
    let start = tokio::time::Instant::now();
    let mut stream = connected(&server, &ca).await;
    stream.write_all(&frame(HEADERS, END_HEADERS, 1, &call(CHECKPOINT_PATH))).await.unwrap();
    stream.write_all(&frame(DATA, 0, 1, &[0, 0, 0])).await.unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).await.unwrap();
        if head[3] == HEADERS {
            assert!(head[4] & END_STREAM != 0, "a refusal and nothing else");
            break;
        }
    }
    let deadline = epigraph_rpc::limits::CALL_DEADLINE;
    let took = start.elapsed();
    assert!(took >= deadline && took < deadline * 2, "{took:?}");
}

/// N1: a client that asks for large answers and never opens its window. Broken to see it fail: no check in the gate, the share
/// given back with the body instead of the bytes.
#[tokio::test]
async fn answers_that_nobody_reads_do_not_fill_the_memory() {
    let ca = Ca::new();
    let server = Server::start(&ca).await;
    let own = ca.issue(client_leaf(READER));
    let stream = server.connect(&ca.raw(Some(&own), &TLS13)).await.unwrap();
    let mut closed = h2::client::Builder::new();
    let (sender, connection) = closed.initial_window_size(0).handshake(stream).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = v1::GetEntriesRequest { origin: ORIGIN.into(), first_index: 105, max_entries: 65 };
    let answer_bytes = 65 * 65_535;
    let message = [&[0, 0, 0, 0, u8::try_from(request.encoded_len()).unwrap()], &request.encode_to_vec()[..]];
    let message = bytes::Bytes::from(message.concat());
    let mut unread = Vec::new();
    let mut sender = sender.ready().await.unwrap();
    loop {
        let head = http::Request::post("https://localhost/epigraph.v1.LogService/GetEntries")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        sender = sender.ready().await.unwrap();
        let (answer, mut sending) = sender.send_request(head.body(()).unwrap(), false).unwrap();
        sending.send_data(message.clone(), true).unwrap();
        let answer = answer.await.unwrap();
        if let Some(status) = answer.headers().get("grpc-status") {
            assert_eq!(status, "8", "RESOURCE_EXHAUSTED");
            break;
        }
        unread.push(answer);
        assert!(unread.len() * answer_bytes < MAX_SENDING_BYTES_PER_IDENTITY, "it takes whatever is asked");
    }
    assert!(
        (unread.len() + 4) * answer_bytes > MAX_SENDING_BYTES_PER_IDENTITY - (16 << 20),
        "{}",
        unread.len()
    );
    // The same name on another connection has no more; another name is served.
    let same = server.log(&ca.client(READER));
    assert!(
        matches!(same.checkpoint(ORIGIN).await, Err(CallError::Refused(refusal)) if refusal.reason() == Reason::Overloaded)
    );
    assert_eq!(server.log(&ca.client(APPENDER)).checkpoint(ORIGIN).await.unwrap(), CHECKPOINT);
    // Whoever goes away gives it back.
    drop((unread, sender));
    driver.abort();
    let mut asked = 0;
    while same.checkpoint(ORIGIN).await.is_err() {
        asked += 1;
        assert!(asked < 10_000, "nothing is given back");
    }
}

/// N1: a header that is begun and never ended. Between its frames no other is allowed (RFC 9113 section 6.10), so whoever
/// dribbles one cannot answer the server's ping.
#[tokio::test(start_paused = true)]
async fn a_header_that_is_dribbled_ends_the_connection() {
    let ca = Ca::new();
    let server = Server::start(&ca).await;
    let mut stream = connected(&server, &ca).await;
    let start = tokio::time::Instant::now();
    stream.write_all(&frame(HEADERS, 0, 1, &call(CHECKPOINT_PATH))).await.unwrap();
    ended(&mut stream).await;
    let took = start.elapsed();
    assert!(took <= 2 * (KEEPALIVE_INTERVAL + KEEPALIVE_TIMEOUT), "{took:?}");
    assert_eq!(server.log(&ca.client(READER)).checkpoint(ORIGIN).await.unwrap(), CHECKPOINT);
}

/// N3: 40 MB of header in seventeen kilobytes, by reference to one large field. Broken to see it fail: no limit on the
/// header.
#[tokio::test]
async fn a_bomb_of_header_fields_is_not_unpacked() {
    let ca = Ca::new();
    let server = Server::start(&ca).await;
    let mut stream = connected(&server, &ca).await;
    // A literal field to be indexed (RFC 7541 section 6.2.1) with 3,000 bytes, their number being 127 + 2,873; then
    // its index, 62, over and over.
    let large = [&[0x40, 1, b'x', 0x7f, 0xb9, 0x16][..], &[b'y'; 3_000]].concat();
    stream.write_all(&frame(HEADERS, END_STREAM, 1, &[call(CHECKPOINT_PATH), large].concat())).await.unwrap();
    stream.write_all(&frame(CONTINUATION, END_HEADERS, 1, &[0xbe; 14_000])).await.unwrap();
    let mut head = [0; 9];
    // The library closes the connection, and would be right to answer 431 as well.
    while stream.read_exact(&mut head).await.is_ok() {
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).await.unwrap();
        // 0x88 is the status 200 (RFC 7541 appendix A), which every answer of gRPC has, refusals too.
        assert!(head[3] != HEADERS || payload[0] != 0x88, "a handler or the gate was reached");
    }
    assert_eq!(server.log(&ca.client(READER)).checkpoint(ORIGIN).await.unwrap(), CHECKPOINT);
}

/// N3: each of these frames asks for an answer. Nobody else has to wait for theirs. The HTTP/2 library sends no GOAWAY for
/// them: it takes no more frames while an answer waits to be written, so they fill no memory.
#[tokio::test]
async fn floods_of_pings_and_settings_keep_nobody_from_being_served() {
    const PING: u8 = 6;
    for (kind, payload) in [(PING, &[0; 8][..]), (SETTINGS, &[0, 3, 0, 0, 0, 64])] {
        let ca = Ca::new();
        let server = Server::start(&ca).await;
        let honest = server.log(&ca.client(READER));
        let (mut reading, mut writing) = tokio::io::split(connected(&server, &ca).await);
        let flood = tokio::spawn(async move {
            let many = frame(kind, 0, 0, payload).repeat(500);
            while writing.write_all(&many).await.is_ok() {}
        });
        let read = tokio::spawn(async move { ended(&mut reading).await });
        for _ in 0..50 {
            assert_eq!(honest.checkpoint(ORIGIN).await.unwrap(), CHECKPOINT);
        }
        flood.abort();
        read.abort();
    }
}
