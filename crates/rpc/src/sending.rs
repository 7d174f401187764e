//! Answers until they are sent, counted. A client that asks for large answers and never opens its window (RFC 9113 section
//! 5.2) makes the server hold them: the HTTP/2 library takes a whole message at once and keeps it until it may be sent.
//! It knows bytes and names, not what an answer says.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::identity::SpiffeId;
use crate::limits::MAX_RESPONSE_BYTES;
use crate::quota::{Exceeded, Quota, Share};
use crate::status::{Reason, Refusal};

/// Bytes of answers that are made and not sent, in all: two identities with all they may have, and as much as one of
/// the others needs.
pub const MAX_SENDING_BYTES: usize = 512 << 20;

/// The same for one identity. One checkpoint can answer 196,608 entries that it waits for, with a kilobyte of proof each.
pub const MAX_SENDING_BYTES_PER_IDENTITY: usize = 192 << 20;

/// Counts the answers of one server.
#[derive(Clone)]
pub(crate) struct Sending(Arc<Quota<SpiffeId>>);

impl Sending {
    pub(crate) fn new() -> Sending {
        Sending(Quota::new(MAX_SENDING_BYTES, MAX_SENDING_BYTES_PER_IDENTITY))
    }

    /// Whether the largest answer could be held for it: before the call costs anything.
    pub(crate) fn check(&self, holder: &SpiffeId) -> Result<(), Exceeded> {
        self.0.check(holder, MAX_RESPONSE_BYTES)
    }

    /// The body, of which each piece counts until the last byte of it is sent or thrown away. One that does not fit ends the
    /// answer with a status: calls that were let in together may together be too much.
    pub(crate) fn count(&self, holder: SpiffeId, body: Body) -> Body {
        if body.is_end_stream() {
            return body;
        }
        Body::new(Counted { body: Some(body), quota: Arc::clone(&self.0), holder })
    }
}

struct Counted {
    /// `None` once it was ended.
    body: Option<Body>,
    quota: Arc<Quota<SpiffeId>>,
    holder: SpiffeId,
}

/// A piece of an answer; the share goes back when nobody holds a byte of it any more.
struct Piece {
    data: Bytes,
    _share: Share<SpiffeId>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = match ready!(Pin::new(body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            other => return Poll::Ready(other),
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
        };
        let counted = match self.quota.take(self.holder.clone(), data.len()) {
            Ok(share) => Frame::data(Bytes::from_owner(Piece { data, _share: share })),
            Err(exceeded) => {
                self.body = None;
                Frame::trailers(status(&exceeded)?)
            }
        };
        Poll::Ready(Some(Ok(counted)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        // It may be ended early.
        SizeHint::default()
    }
}

/// Not [`Reason::Overloaded`], which is said of calls that were not made.
fn status(exceeded: &Exceeded) -> Result<HeaderMap, Status> {
    let text = format!(
        "the call was made, and its answer cannot be sent: too many bytes of answers wait to be read, {exceeded}; read them"
    );
    let mut trailers = HeaderMap::new();
    Status::from(Refusal::new(Reason::Internal, text)).add_header(&mut trailers)?;
    Ok(trailers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full};

    fn name(text: &str) -> SpiffeId {
        format!("spiffe://td/epigraph/x/{text}").parse().unwrap()
    }

    /// N1. Broken to see it fail: no check, the share given back with the body instead of the bytes, no end of what does not
    /// fit.
    #[tokio::test]
    async fn bytes_count_until_the_last_of_them_is_gone() {
        let sending = Sending::new();
        let piece = Bytes::from(vec![7; MAX_RESPONSE_BYTES]);
        let next = async |holder: &str| {
            let mut body = sending.count(name(holder), Body::new(Full::new(piece.clone())));
            body.frame().await.unwrap().unwrap().into_data()
        };
        let mut held = Vec::new();
        while sending.check(&name("a")).is_ok() {
            held.push(next("a").await.unwrap());
            assert!(held.len() <= MAX_SENDING_BYTES_PER_IDENTITY / MAX_RESPONSE_BYTES, "nothing counts");
        }
        assert_eq!(held.iter().map(Bytes::len).sum::<usize>(), MAX_SENDING_BYTES_PER_IDENTITY);
        let ended = next("a").await.unwrap_err().into_trailers().unwrap();
        let refusal = Refusal::from_status(&Status::from_header_map(&ended).unwrap()).unwrap();
        assert_eq!(refusal.reason(), Reason::Internal);
        sending.check(&name("b")).unwrap();
        // A byte of the first is still there, and no byte of the second.
        held[0].truncate(1);
        assert!(sending.check(&name("a")).is_err());
        held.remove(1);
        sending.check(&name("a")).unwrap();
        held.clear();
        assert_eq!(sending.0.in_use(), 0);
    }
}
