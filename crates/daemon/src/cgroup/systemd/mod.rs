//! systemd as the maker of cgroups: scopes and slices, asked for over D-Bus.
//!
//! A scope is made around a process and taken away, with its cgroup, when its last process has ended. Both are the
//! wrong moment for a container, so each scope has a process that keeps it, in a leaf of its own:
//!
//! ```text
//! knarr-<container id>.scope/            systemd's: its files follow the unit's properties
//!     knarr-keeper/                      the keeper
//!     container/                         ours: the container, with the same limits written by us, and its execs
//! ```
//!
//! Scopes are delegated: below them systemd touches nothing, whatever is reloaded or set.

mod bus;
mod keeper;
pub(super) mod properties;

use super::group::{Group, blocking, join};
use super::names::{KEEPER_LEAF, SCOPES, Slice};
use bus::{Bus, CallError};
use keeper::Keeper;
use knarr_model::{Error, ErrorKind};
use knarr_sys::cgroup as sys;
use properties::Property;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use zbus::{OwnedObjectPath, Variant};

/// How often something is asked of systemd when it went away in the middle: it executes itself anew within a second.
const ATTEMPTS: u32 = 3;

/// Between two attempts.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(300);

/// Units that could not be cleared away because systemd could not be reached, to be cleared later. What is beyond is
/// found at the next start.
const LEFT_BEHIND_MAX: usize = 4096;

/// sd_booted(3) looks for this directory.
const BOOTED: &str = "/run/systemd/system";

/// Where systemd puts itself.
const INIT_SCOPE: &str = "/init.scope";

/// Whether systemd is this machine's init, and the process 1 that we see; or why not.
pub fn is_init() -> Result<(), &'static str> {
    if !std::fs::symlink_metadata(BOOTED).is_ok_and(|found| found.is_dir()) {
        return Err("systemd does not run this machine (there is no /run/systemd/system)");
    }
    // systemd is told processes by number: in another PID namespace the number would be somebody else's.
    let of_init = std::fs::read_to_string("/proc/1/cgroup").unwrap_or_default();
    match of_init.lines().any(|line| line.ends_with(INIT_SCOPE)) {
        true => Ok(()),
        false => Err("systemd is in another PID namespace (process 1 here is not in its init.scope)"),
    }
}

/// A scope to be made.
#[derive(Debug)]
pub struct Scope {
    /// the unit's name
    pub unit: String,
    /// where it is
    pub slice: Slice,
    /// for people
    pub description: String,
    /// limits
    pub properties: Vec<Property>,
}

/// The arguments of StartTransientUnit, but for the process.
#[derive(Debug)]
struct Body {
    unit: String,
    properties: Vec<Property>,
}

type Auxiliary<'a> = Vec<(&'a str, Vec<(&'a str, Variant<'a>)>)>;

impl Scope {
    fn into_body(self) -> Body {
        let mut properties: Vec<Property> = vec![
            ("Description", Variant::new(self.description)),
            ("Slice", Variant::new(self.slice.unit())),
            ("Delegate", Variant::new(true)),
            // It neither waits for boot nor is stopped before the network at shutdown: pods are kubelet's to end.
            ("DefaultDependencies", Variant::new(false)),
            // One that failed is forgotten like one that ended.
            ("CollectMode", Variant::new("inactive-or-failed")),
        ];
        properties.extend(properties::defaults(&self.properties));
        properties.extend(self.properties);
        Body { unit: self.unit, properties }
    }
}

impl Body {
    fn with(&self, pid: u32) -> (&str, &str, Vec<(&str, Variant<'_>)>, Auxiliary<'_>) {
        let process = ("PIDs", Variant::new(vec![pid]));
        let others = self.properties.iter().filter_map(|(name, value)| Some((*name, value.try_clone().ok()?)));
        (&self.unit, "replace", others.chain([process]).collect(), Vec::new())
    }
}

/// The client of systemd.
#[derive(Debug)]
pub struct Systemd {
    bus: Bus,
    /// knarr-shim, from which keepers are started
    shim: OnceLock<Arc<OwnedFd>>,
    left_behind: Mutex<BTreeSet<String>>,
}

impl Systemd {
    /// Asks nothing yet.
    pub fn new() -> Self {
        Self { bus: Bus::new(), shim: OnceLock::new(), left_behind: Mutex::default() }
    }

    /// Where keepers are started from.
    pub fn set_shim(&self, shim: OwnedFd) {
        let _ = self.shim.set(Arc::new(shim));
    }

    /// Whether it can be asked, or why not.
    pub async fn answers(&self) -> Result<(), Error> {
        self.bus.answers().await.map_err(|e| e.into_error("ask systemd"))
    }

    /// Makes a scope whose cgroup is `group`, with a keeper in its leaf. A unit of that name that is there goes first.
    pub async fn start_kept(self: &Arc<Self>, scope: Scope, group: &Group) -> Result<(), Error> {
        let Some(shim) = self.shim.get() else { return Err(Error::internal("knarr-shim is not known yet")) };
        let (unit, doing) = (scope.unit.clone(), format!("start {} in {}", scope.unit, scope.slice.unit()));
        let body = scope.into_body();
        let mut attempt = 1;
        loop {
            let keeper = Keeper::spawn(shim.clone(), unit.clone()).await?;
            let error = match self.bus.run_job(&unit, "StartTransientUnit", &body.with(keeper.pid())).await {
                Ok(result) if result == "done" => return self.settle(unit, group, keeper).await,
                Ok(result) => CallError::Refused("job".into(), format!("the job's result is {result:?}")),
                Err(error) => error,
            };
            // Without its word the keeper ends, and with it what the attempt may have begun.
            drop(keeper);
            match error {
                CallError::Lost(_) if attempt < ATTEMPTS => tokio::time::sleep(ATTEMPT_PAUSE).await,
                error if error.is("UnitExists") && attempt < ATTEMPTS => self.stop(&unit).await?,
                CallError::Lost(_) => return Err(error.into_error(doing)),
                error => {
                    self.clear(&unit).await;
                    return Err(error.into_error(doing));
                }
            }
            attempt += 1;
        }
    }

    async fn settle(self: &Arc<Self>, unit: String, group: &Group, keeper: Keeper) -> Result<(), Error> {
        let (group, unit_, pid) = (group.clone(), unit.clone(), keeper.pid());
        let settled = blocking(move || put_aside(&group, &unit_, pid)).await;
        match settled.and_then(|()| keeper.stay()) {
            Ok(()) => {
                self.clear_left_behind();
                Ok(())
            }
            Err(error) => {
                self.clear(&unit).await;
                Err(error)
            }
        }
    }

    /// Makes a scope around a process that runs, which systemd moves there.
    pub async fn start_around(&self, scope: Scope, pid: u32) -> Result<(), Error> {
        let (unit, doing) = (scope.unit.clone(), format!("start {} in {}", scope.unit, scope.slice.unit()));
        match self.bus.run_job(&unit, "StartTransientUnit", &scope.into_body().with(pid)).await {
            Ok(result) if result == "done" => Ok(()),
            Ok(result) => Err(Error::internal(format!("{doing}: the job's result is {result:?}"))),
            Err(error) => Err(error.into_error(doing)),
        }
    }

    /// Changes properties of a unit, until it ends or they are changed again, and returns when they are in its cgroup.
    pub async fn set(&self, unit: &str, properties: Vec<Property>) -> Result<(), Error> {
        let doing = || format!("set properties of {unit}");
        let body = (unit, true, properties);
        self.call(doing, "SetUnitProperties", &body).await?;
        // systemd answers before it writes, but writes before it reads its next message.
        self.call(doing, "GetUnit", &(unit,)).await
    }

    /// Makes sure that no unit of this name is left, nor the memory of one that failed. What lives in it gets SIGTERM and
    /// time: whoever wants it gone quickly has killed it before. Where systemd cannot be asked this is done later.
    pub async fn clear(&self, unit: &str) {
        if let Err(error) = self.stop(unit).await {
            tracing::warn!(unit, %error, "cannot clear the unit away; it is tried again later");
            let mut left_behind = self.left_behind.lock().unwrap_or_else(PoisonError::into_inner);
            if left_behind.len() < LEFT_BEHIND_MAX {
                left_behind.insert(unit.to_owned());
            }
        }
    }

    /// Units of ours that failed and are still remembered: names.
    pub async fn failed_scopes(&self) -> Result<Vec<String>, Error> {
        let reply = self.bus.call("ListUnitsByPatterns", &(["failed"].as_slice(), [SCOPES].as_slice())).await;
        let reply = reply.map_err(|e| e.into_error("list failed scopes"))?;
        let body = reply.body();
        let units: Vec<Unit> = body.deserialize().map_err(|e| Error::internal(format!("list failed scopes: {e}")))?;
        Ok(units.into_iter().map(|unit| unit.0).collect())
    }

    async fn stop(&self, unit: &str) -> Result<(), Error> {
        let doing = || format!("stop {unit}");
        let mut attempt = 1;
        loop {
            match self.bus.run_job(unit, "StopUnit", &(unit, "replace")).await {
                // "canceled", for instance: somebody else stops it.
                Ok(_) => break,
                Err(error) if error.is("NoSuchUnit") => return Ok(()),
                Err(CallError::Lost(_)) if attempt < ATTEMPTS => tokio::time::sleep(ATTEMPT_PAUSE).await,
                Err(error) => return Err(error.into_error(doing())),
            }
            attempt += 1;
        }
        match self.call(|| format!("forget {unit}"), "ResetFailedUnit", &(unit,)).await {
            // It is gone already, which is as it should be.
            Err(error) if error.kind == ErrorKind::Internal => Ok(()),
            outcome => outcome,
        }
    }

    /// What an earlier failure to reach systemd has left, now that it is reached again.
    fn clear_left_behind(self: &Arc<Self>) {
        let left_behind = std::mem::take(&mut *self.left_behind.lock().unwrap_or_else(PoisonError::into_inner));
        if left_behind.is_empty() {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            for unit in left_behind {
                this.clear(&unit).await;
            }
        });
    }

    async fn call<B>(&self, doing: impl Fn() -> String, method: &str, body: &B) -> Result<(), Error>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let mut attempt = 1;
        loop {
            match self.bus.call(method, body).await {
                Ok(_) => return Ok(()),
                Err(CallError::Lost(_)) if attempt < ATTEMPTS => tokio::time::sleep(ATTEMPT_PAUSE).await,
                Err(error) => return Err(error.into_error(doing())),
            }
            attempt += 1;
        }
    }
}

/// One line of ListUnitsByPatterns: name, description, load, active and sub state, followed unit, object, queued job
/// with its type and object.
type Unit = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// Sees that the keeper is where it should be, and moves it to its leaf: where a process is, the controllers cannot be
/// passed on.
fn put_aside(group: &Group, unit: &str, pid: u32) -> Result<(), Error> {
    let expected = format!("0::/{}", group.path);
    let is = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("cgroup")).unwrap_or_default();
    if is.trim_end() != expected {
        let is = is.trim_end();
        return Err(Error::internal(format!("{unit}: its first process is in {is:?} instead of {expected:?}")));
    }
    let leaf = join(&group.path, KEEPER_LEAF);
    let failed = |e| Error::internal(format!("{unit}: move its keeper to cgroup /{leaf}: {e}"));
    sys::make_dirs(group.shared.tree(), &leaf).map_err(failed)?;
    sys::write(group.shared.tree(), &join(&leaf, "cgroup.procs"), &pid.to_string()).map_err(failed)
}
