//! The body of an HTTP request: read within a time and a size, unpacked within the same size.

use std::io::Read;
use std::time::Duration;

use epigraph_event::decode::MAX_DOCUMENT_BYTES;
use epigraph_rpc::Share;
use flate2::read::MultiGzDecoder;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

/// How long a body may take. The largest one needs five megabits a second for it; whoever is slower is dribbling.
const BODY_TIME: Duration = Duration::from_secs(30);

/// What is unpacked at once.
const PIECE_BYTES: usize = 64 * 1024;

/// Why there is no body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyError {
    /// Beyond [`MAX_DOCUMENT_BYTES`], as it came or unpacked.
    TooLarge,
    /// Not there in [`BODY_TIME`].
    TooSlow,
    /// Too many bytes are held already.
    Full,
    /// The sender hung up.
    Broken,
    /// Not gzip.
    NotGzip,
}

/// Reads it. `share` holds what was read.
pub async fn read(body: Incoming, share: &mut Share<usize>) -> Result<Vec<u8>, BodyError> {
    timeout(BODY_TIME, read_all(body, share)).await.unwrap_or(Err(BodyError::TooSlow))
}

async fn read_all(mut body: Incoming, share: &mut Share<usize>) -> Result<Vec<u8>, BodyError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
        if bytes.len() + data.len() > MAX_DOCUMENT_BYTES {
            return Err(BodyError::TooLarge);
        }
        share.grow(data.len()).map_err(|_| BodyError::Full)?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// Unpacks it: a bomb is given up at [`MAX_DOCUMENT_BYTES`].
pub fn gunzip(packed: &[u8], share: &mut Share<usize>) -> Result<Vec<u8>, BodyError> {
    let mut unpacking = MultiGzDecoder::new(packed);
    let mut bytes = Vec::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = unpacking.read(&mut piece).map_err(|_| BodyError::NotGzip)?;
        if count == 0 {
            return Ok(bytes);
        }
        if bytes.len() + count > MAX_DOCUMENT_BYTES {
            return Err(BodyError::TooLarge);
        }
        share.grow(count).map_err(|_| BodyError::Full)?;
        bytes.extend_from_slice(&piece[..count]);
    }
}
