//! The one connection to systemd, over the system's D-Bus: made when it is first needed, and again when it was lost.
//! Every call has a deadline, and so has waiting for the job that a call has queued.
//!
//! Which units there are and what they are for is not known here.

use knarr_model::{Error, ErrorKind};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::StreamExt;
use zbus::message::{Message, Type};
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, OwnedVariant};

/// To be connected and known to the bus. A local socket answers at once; at boot the bus may be a little late.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// For the answer to one call. systemd answers in a millisecond, but not while it reloads: seconds with many units.
const CALL_DEADLINE: Duration = Duration::from_secs(15);

/// For the end of a job of ours, which is to make or to empty a cgroup; other jobs may be before it in the queue.
const JOB_DEADLINE: Duration = Duration::from_secs(30);

/// Calls at once over all pods. The bus refuses a connection's 129th unanswered call (max_replies_per_connection).
const CALLS_AT_ONCE: usize = 64;

/// Ends of jobs, everybody's on the machine, that wait to be looked at; looking takes microseconds.
const SIGNALS_WAITING: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Ends of jobs of one unit that wait for whoever asked: ours, and one that somebody else may have queued.
const ENDS_WAITING: usize = 8;

/// The oldest systemd that knows every property that is set (AllowedCPUs is the newest of them).
const VERSION_MIN: u32 = 244;

const SERVICE: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Why a call did not do what it should.
#[derive(Debug)]
pub enum CallError {
    /// systemd was not reached, or went away before it answered: to be tried again.
    Lost(String),
    /// It did not answer in time. Whether it does what was asked later on is not known.
    Late(String),
    /// It said no: the error's D-Bus name, and its words.
    Refused(String, String),
}

impl CallError {
    /// systemd's own error of that name, without what stands before it ("NoSuchUnit").
    pub fn is(&self, name: &str) -> bool {
        matches!(self, Self::Refused(full, _) if full.strip_prefix("org.freedesktop.systemd1.") == Some(name))
    }

    /// In words, with what was being done.
    pub fn into_error(self, doing: impl fmt::Display) -> Error {
        let kind = match self {
            Self::Refused(..) => ErrorKind::Internal,
            Self::Lost(_) | Self::Late(_) => ErrorKind::Unavailable,
        };
        Error::new(kind, format!("{doing}: {self}"))
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(why) => write!(f, "systemd cannot be reached over D-Bus: {why}"),
            Self::Late(what) => write!(f, "systemd did not {what} in time"),
            Self::Refused(name, why) => write!(f, "systemd refused: {why} ({name})"),
        }
    }
}

impl From<zbus::Error> for CallError {
    fn from(error: zbus::Error) -> Self {
        match error {
            zbus::Error::MethodError(name, text, _) => Self::Refused(name.to_string(), text.unwrap_or_default()),
            zbus::Error::FDO(error) => match *error {
                // systemd has just executed itself anew, or the bus has.
                zbus::fdo::Error::NoReply(why)
                | zbus::fdo::Error::ServiceUnknown(why)
                | zbus::fdo::Error::NameHasNoOwner(why)
                | zbus::fdo::Error::Disconnected(why) => Self::Lost(why),
                other => {
                    use zbus::DBusError;
                    Self::Refused(other.name().to_string(), other.description().unwrap_or_default().to_owned())
                }
            },
            other => Self::Lost(other.to_string()),
        }
    }
}

/// The way to systemd.
#[derive(Debug)]
pub struct Bus {
    link: Mutex<Option<Link>>,
    /// One connects at a time; the others find the connection.
    connecting: Semaphore,
    calls: Semaphore,
}

/// A connection that was alive when it was looked at last.
#[derive(Debug, Clone)]
struct Link {
    connection: Connection,
    jobs: Arc<Jobs>,
}

impl Bus {
    /// Connects to nothing yet.
    pub fn new() -> Self {
        let (connecting, calls) = (Semaphore::new(1), Semaphore::new(CALLS_AT_ONCE));
        Self { link: Mutex::default(), connecting, calls }
    }

    /// Whether systemd can be asked: connects, if need be.
    pub async fn answers(&self) -> Result<(), CallError> {
        self.link().await.map(drop)
    }

    /// Calls a method of systemd's manager.
    pub async fn call<B>(&self, method: &str, body: &B) -> Result<Message, CallError>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        self.call_on(&self.link().await?, method, body).await
    }

    /// Calls a method that queues a job for `unit`, waits for the job and gives its result: "done", "failed", "timeout",
    /// "canceled", "dependency", "skipped".
    pub async fn run_job<B>(&self, unit: &str, method: &str, body: &B) -> Result<String, CallError>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let link = self.link().await?;
        // From before the call: the job may end before its answer has been read.
        let mut ends = link.jobs.watch(unit);
        let reply = self.call_on(&link, method, body).await?;
        let job: OwnedObjectPath = reply.body().deserialize()?;
        let wait = async {
            while let Some(end) = ends.receiver.recv().await {
                if end.job == job {
                    return Ok(end.result);
                }
            }
            Err(CallError::Lost("the connection ended while a job was waited for".into()))
        };
        match tokio::time::timeout(JOB_DEADLINE, wait).await {
            Ok(ended) => ended,
            Err(_) => Err(CallError::Late(format!("finish the job of {unit} ({method})"))),
        }
    }

    async fn call_on<B>(&self, link: &Link, method: &str, body: &B) -> Result<Message, CallError>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let call = async {
            // It is never closed.
            let _permit = self.calls.acquire().await;
            link.connection.call_method(Some(SERVICE), OBJECT, Some(MANAGER), method, body).await
        };
        match tokio::time::timeout(CALL_DEADLINE, call).await {
            Ok(reply) => Ok(reply?),
            Err(_) => Err(CallError::Late(format!("answer {method}"))),
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn living(&self) -> Option<Link> {
        self.held().clone().filter(|link| !link.connection.is_closed())
    }

    async fn link(&self) -> Result<Link, CallError> {
        if let Some(link) = self.living() {
            return Ok(link);
        }
        let connect = async {
            let _turn = self.connecting.acquire().await;
            match self.living() {
                Some(link) => Ok(link),
                None => {
                    let link = connect().await?;
                    *self.held() = Some(link.clone());
                    Ok(link)
                }
            }
        };
        match tokio::time::timeout(CONNECT_DEADLINE, connect).await {
            Ok(link) => link,
            Err(_) => Err(CallError::Lost(format!("no answer within {CONNECT_DEADLINE:?}"))),
        }
    }
}

async fn connect() -> Result<Link, CallError> {
    let connection = zbus::connection::Builder::system().build().await?;
    enough(&connection).await?;
    let rule = MatchRule::builder().msg_type(Type::Signal).sender(SERVICE).interface(MANAGER).member("JobRemoved");
    let signals = MessageStream::for_match_rule(rule.build()?, &connection, Some(SIGNALS_WAITING)).await?;
    connection.call_method(Some(SERVICE), OBJECT, Some(MANAGER), "Subscribe", &()).await?;
    let jobs = Arc::new(Jobs::default());
    tokio::spawn(Arc::clone(&jobs).follow(signals));
    tracing::debug!("connected to systemd over D-Bus");
    Ok(Link { connection, jobs })
}

async fn enough(connection: &Connection) -> Result<(), CallError> {
    let reply = connection.call_method(Some(SERVICE), OBJECT, Some(PROPERTIES), "Get", &(MANAGER, "Version")).await?;
    let version: OwnedVariant = reply.body().deserialize()?;
    let version = String::try_from(version)?;
    match leading_number(&version) {
        Some(number) if number >= VERSION_MIN => Ok(()),
        _ => {
            let words = format!("systemd {version} is too old, {VERSION_MIN} or newer is needed");
            Err(CallError::Refused("version".into(), words))
        }
    }
}

/// "252.39-1~deb12u1", "v245".
fn leading_number(version: &str) -> Option<u32> {
    let digits = version.trim_start_matches('v');
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// The end of one job.
#[derive(Debug)]
struct End {
    job: OwnedObjectPath,
    result: String,
}

/// Who waits for the end of a job of which unit.
#[derive(Debug, Default)]
struct Jobs {
    waiting: Mutex<Vec<(u64, String, mpsc::Sender<End>)>>,
    numbers: AtomicU64,
}

/// One who waits. Dropped, it waits no more.
struct Watch {
    jobs: Arc<Jobs>,
    number: u64,
    receiver: mpsc::Receiver<End>,
}

impl Jobs {
    fn watch(self: &Arc<Self>, unit: &str) -> Watch {
        let (sender, receiver) = mpsc::channel(ENDS_WAITING);
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.waiting().push((number, unit.to_owned(), sender));
        Watch { jobs: self.clone(), number, receiver }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(u64, String, mpsc::Sender<End>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the connection ends; then nobody has anything to wait for.
    async fn follow(self: Arc<Self>, mut signals: MessageStream) {
        while let Some(signal) = signals.next().await {
            let Ok(signal) = signal else { break };
            let Ok((_, job, unit, result)) = signal.body().deserialize::<(u32, OwnedObjectPath, String, String)>()
            else {
                continue;
            };
            for (_, _, waiting) in self.waiting().iter().filter(|(_, of, _)| *of == unit) {
                // Full: so many jobs of one unit have ended that ours is among them.
                let _ = waiting.try_send(End { job: job.clone(), result: result.clone() });
            }
        }
        self.waiting().clear();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.jobs.waiting().retain(|(number, ..)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_distributions_write_them() {
        for (text, number) in [("252.39-1~deb12u1", 252), ("v245", 245), ("255", 255)] {
            assert_eq!(leading_number(text), Some(number));
        }
        assert_eq!(leading_number("unknown"), None);
    }

    #[test]
    fn errors_say_whether_to_try_again() {
        let lost = CallError::Lost("gone".into()).into_error("start knarr-x.scope");
        assert_eq!(lost.kind, ErrorKind::Unavailable);
        assert!(lost.message.starts_with("start knarr-x.scope: systemd cannot be reached over D-Bus: gone"), "{lost}");
        let refused = CallError::Refused("org.freedesktop.systemd1.NoSuchUnit".into(), "not loaded".into());
        assert!(refused.is("NoSuchUnit") && !refused.is("UnitExists"));
        assert_eq!(refused.into_error("stop").kind, ErrorKind::Internal);
    }

    #[tokio::test]
    async fn whoever_waits_for_a_unit_hears_of_its_jobs_only() {
        let jobs = Arc::new(Jobs::default());
        let mut one = jobs.watch("one.scope");
        let two = jobs.watch("two.scope");
        let end = |job: &str| End { job: OwnedObjectPath::try_from(job.to_owned()).unwrap(), result: "done".into() };
        for (_, _, sender) in jobs.waiting().iter().filter(|(_, unit, _)| unit == "one.scope") {
            sender.try_send(end("/job/1")).unwrap();
        }
        assert_eq!(one.receiver.recv().await.unwrap().job.as_str(), "/job/1");
        drop(two);
        assert_eq!(jobs.waiting().len(), 1);
        jobs.waiting().clear();
        assert!(one.receiver.recv().await.is_none(), "the connection is gone");
    }
}
