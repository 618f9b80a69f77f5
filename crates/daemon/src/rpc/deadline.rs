//! The client's deadline, kept here so that its end is told with the right code: gRPC's own word for it is
//! DEADLINE_EXCEEDED, and kubelet and the conformance suite tell it from CANCELLED; tonic answers CANCELLED.

use http::{HeaderMap, Request, Response};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// How long before the client's deadline the answer is given: tonic's own timer, which would answer first otherwise,
/// and the client's both run from the same header, and timers tick once a millisecond.
const AHEAD: Duration = Duration::from_millis(2);

/// Puts [`Deadline`] around a service.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner }
    }
}

/// A service that answers DEADLINE_EXCEEDED in time. The call that is given up is dropped.
#[derive(Debug, Clone)]
pub struct Deadline<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for Deadline<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let limit = timeout(request.headers());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let Some(limit) = limit else { return answer.await };
            match tokio::time::timeout(limit.saturating_sub(AHEAD), answer).await {
                Ok(answered) => answered,
                Err(_) => Ok(Status::deadline_exceeded("the client's deadline is over").into_http()),
            }
        })
    }
}

/// The value of grpc-timeout: at most eight digits and a unit. What is malformed counts as none.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        timeout(&headers)
    }

    #[test]
    fn every_unit_is_understood_and_nonsense_is_no_timeout() {
        assert_eq!(of("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(of("3M"), Some(Duration::from_secs(180)));
        assert_eq!(of("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(of("1000m"), Some(Duration::from_secs(1)));
        assert_eq!(of("5u"), Some(Duration::from_micros(5)));
        assert_eq!(of("7n"), Some(Duration::from_nanos(7)));
        for nonsense in ["", "S", "1", "1s", "-1S", "123456789S", "1 S", "é"] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", http::HeaderValue::from_bytes(nonsense.as_bytes()).unwrap());
            assert_eq!(timeout(&headers), None, "{nonsense:?}");
        }
    }

    #[tokio::test]
    async fn a_call_that_takes_too_long_is_answered_with_the_right_code() {
        let slow = tower::service_fn(|_: Request<Body>| async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok(Response::new(Body::empty()))
        });
        let request = Request::builder().header("grpc-timeout", "20m").body(Body::empty()).unwrap();
        let response = DeadlineLayer.layer(slow).call(request).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "4");
    }
}
