//! The loop: waits for the daemon, for children, for output and for time, and gives each to what handles it. It holds
//! all that the shim knows; it does not know what a request means.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use knarr_model::plan::{Exit, ProcessPlan, Rlimit};
use knarr_model::{ContainerId, ExecId, PodId};
use knarr_runtime::{Child, PodNamespaces};
use knarr_sys::process::Ended;
use knarr_sys::{process, signal};
use knarr_wire::shim::exit_record::{DIRECTORY, ExitRecord};
use knarr_wire::shim::{AttachId, Event, Kind, Reply};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::attach::Client;
use crate::connection::{Connection, Gone};
use crate::container::{Container, Scratch};

/// How long an exec lives on without the daemon that asked for it: its client's connection went with that daemon, but
/// what it is about to finish may finish.
const EXEC_OUTLIVES_DAEMON: Duration = Duration::from_secs(5);

/// How long a shim without a pod waits for a daemon: one that was killed between starting a shim and writing that down
/// does not come back for it.
const WAIT_FOR_POD: Duration = Duration::from_secs(60);

/// How long the end waits for the last processes to be reaped, for clients to take what they are owed, then for the
/// daemon to take the reply.
const END_AT_MOST: Duration = Duration::from_secs(2);

/// Requests in a row before something else gets its turn.
const REQUESTS_IN_A_ROW: usize = 8;

const LISTENER: u64 = 0;
const SIGNALS: u64 = 1;
const CONNECTION: u64 = 2;
/// The output 0 of the container with serial 0; two numbers for each serial.
const OUTPUTS: u64 = 16;
/// The pipes of the attached client with serial 0; one number for each serial. Above every output: a container's serial
/// has 32 bits.
const CLIENTS: u64 = 1 << 40;

/// All that the shim knows.
pub struct Supervisor {
    epoll: OwnedFd,
    listener: OwnedFd,
    signals: OwnedFd,
    /// /dev/null, for processes without input or output.
    pub null: OwnedFd,
    /// How many descriptors a process may have open whose plan does not say; `None` where that is what the shim has.
    files_of_processes: Option<Rlimit>,
    pub scratch: Scratch,
    pub connection: Option<Connection>,
    connections_made: u64,
    pub pod: Option<Pod>,
    pub containers: Vec<Container>,
    pub execs: Vec<Exec>,
    pub serials_used: u32,
    attaches_made: u64,
    ending: Option<Ending>,
    born: Instant,
}

/// What the pod owns as a whole.
pub struct Pod {
    pub id: PodId,
    pub namespaces: PodNamespaces,
    /// Its run-time directory.
    pub run_dir: OwnedFd,
}

/// An exec that has not been reaped.
pub struct Exec {
    pub id: ExecId,
    pub child: Child,
    /// The number of the connection that asked for it.
    pub connection: u64,
    /// That connection is gone.
    pub kill_at: Option<Instant>,
}

/// The shim is on its way out.
struct Ending {
    by: Instant,
    /// The request that is answered when everything is gone: number of its connection, its id.
    asked_by: Option<(u64, u64)>,
}

impl Supervisor {
    /// A shim without a pod.
    pub fn new(
        listener: OwnedFd,
        signals: OwnedFd,
        null: OwnedFd,
        files_of_processes: Option<Rlimit>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        epoll::add(&epoll, &signals, EventData::new_u64(SIGNALS), EventFlags::IN)?;
        Ok(Self {
            epoll,
            listener,
            signals,
            null,
            files_of_processes,
            scratch: Scratch::new(),
            connection: None,
            connections_made: 0,
            pod: None,
            containers: Vec::new(),
            execs: Vec::new(),
            serials_used: 0,
            attaches_made: 0,
            ending: None,
            born: now(),
        })
    }

    /// Runs until the daemon ends it.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(16);
        while !self.has_ended() {
            let timeout = self.next_time().map(|at| timespec(at.saturating_duration_since(now())));
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.on_listener(),
                    SIGNALS => self.on_signal(),
                    CONNECTION => self.on_connection(),
                    token if token >= CLIENTS => self.on_client(token - CLIENTS, event.flags),
                    token => self.on_output(token),
                }
            }
            self.on_time(now());
        }
        // A socket that nobody listens at would look like a shim to a daemon that starts later.
        let _ = rustix::fs::unlink("shim.sock");
        Ok(())
    }

    fn on_listener(&mut self) {
        self.connections_made += 1;
        let connection = match Connection::accept(self.listener.as_fd(), self.connections_made) {
            Ok(Some(connection)) => connection,
            Ok(None) => return,
            Err(error) => return eprintln!("knarr-shim: accept: {error}"),
        };
        // A daemon that connects is the daemon: the one before it is dead or about to be.
        self.disconnect(None);
        match epoll::add(&self.epoll, connection.socket(), EventData::new_u64(CONNECTION), EventFlags::IN) {
            Ok(()) => self.connection = Some(connection),
            Err(errno) => eprintln!("knarr-shim: watch the connection: {errno}"),
        }
    }

    fn on_connection(&mut self) {
        for _ in 0..REQUESTS_IN_A_ROW {
            let Some(connection) = &mut self.connection else { return };
            match connection.receive() {
                Ok(Some(frame)) => crate::requests::serve(self, frame),
                Ok(None) => break,
                Err(gone) => return self.disconnect(gone),
            }
        }
        if let Some(connection) = &mut self.connection
            && let Err(gone) = connection.flush()
        {
            self.disconnect(gone);
        }
        self.watch_connection();
    }

    /// Lets epoll wake us for writing while there is something to write.
    fn watch_connection(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let behind = connection.is_behind();
        if behind == connection.watched_for_writing {
            return;
        }
        connection.watched_for_writing = behind;
        let flags = if behind { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        if let Err(errno) = epoll::modify(&self.epoll, connection.socket(), EventData::new_u64(CONNECTION), flags) {
            self.disconnect(Some(format!("watch the connection: {errno}")));
        }
    }

    fn disconnect(&mut self, gone: Gone) {
        let Some(connection) = self.connection.take() else { return };
        if let Some(why) = gone {
            eprintln!("knarr-shim: connection to the daemon closed: {why}");
        }
        let kill_at = now() + EXEC_OUTLIVES_DAEMON;
        for exec in self.execs.iter_mut().filter(|exec| exec.connection == connection.number) {
            exec.kill_at = Some(kill_at);
        }
    }

    /// Answers request `id` of the connection that is there.
    pub fn reply(&mut self, id: u64, reply: &Reply, fds: Vec<OwnedFd>) {
        self.with_connection(|connection| connection.send(Kind::Reply, id, reply, fds));
    }

    fn tell(&mut self, event: &Event) {
        self.with_connection(|connection| connection.send(Kind::Event, 0, event, Vec::new()));
    }

    fn with_connection(&mut self, send: impl FnOnce(&mut Connection) -> Result<(), Gone>) {
        let Some(connection) = &mut self.connection else { return };
        match send(connection) {
            Ok(()) => self.watch_connection(),
            Err(gone) => self.disconnect(gone),
        }
    }

    fn on_output(&mut self, token: u64) {
        let Some(number) = token.checked_sub(OUTPUTS) else { return };
        // An event of a container that was forgotten in this round finds nobody.
        let Some(at) = self.containers.iter().position(|c| u64::from(c.serial) == number / 2) else { return };
        self.containers[at].read_output((number % 2) as usize, &mut self.scratch);
        self.settle(at);
    }

    /// Nobody reads one of the pipes of client `serial`, or it takes more.
    fn on_client(&mut self, serial: u64, flags: EventFlags) {
        let has = |container: &Container| container.clients.iter().any(|client| client.serial == serial);
        // One that was let go in this round is not there any more.
        let Some(at) = self.containers.iter().position(has) else { return };
        if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
            self.containers[at].clients.reader_gone(serial);
        } else {
            self.containers[at].go_on_with_client(serial);
        }
        self.settle(at);
    }

    /// A client of the daemon that is connected, for a container's [`Clients`](crate::attach::Clients).
    ///
    /// Its pipes are watched without asking for any event: that nobody reads is told always, and at once, also while
    /// the container is silent. That one takes more is asked for only while it is owed something.
    pub fn watched_client(&mut self, id: AttachId, outputs: [Option<OwnedFd>; 2]) -> Result<Client<OwnedFd>, Errno> {
        let Some(connection) = &self.connection else { return Err(Errno::NOTCONN) };
        self.attaches_made += 1;
        let client = Client::new(self.attaches_made, id, connection.number, outputs);
        for pipe in client.pipes() {
            let token = EventData::new_u64(CLIENTS + client.serial);
            if let Err(errno) = epoll::add(&self.epoll, pipe, token, EventFlags::empty()) {
                self.unwatch(client.pipes());
                return Err(errno);
            }
        }
        Ok(client)
    }

    /// Takes descriptors out of epoll, to be closed then. Closing alone does it only for a descriptor of which nobody
    /// else has a duplicate; of another, events would come for ever.
    pub fn unwatch<'a>(&self, fds: impl Iterator<Item = &'a OwnedFd>) {
        for fd in fds {
            // One that is not watched is no harm.
            let _ = epoll::delete(&self.epoll, fd);
        }
    }

    /// Lets go what of container number `at` has ended: outputs, and clients, who are told before their pipes close.
    fn let_go(&mut self, at: usize) {
        let outputs = self.containers[at].take_ended_outputs();
        self.unwatch(outputs.iter());
        for client in self.containers[at].clients.take_ended() {
            let asked_here = self.connection.as_ref().is_some_and(|now| now.number == client.connection);
            if let Some(farewell) = client.farewell().filter(|_| asked_here) {
                self.tell(&farewell);
            }
            self.unwatch(client.pipes());
        }
    }

    /// Completes what a process is told: nobody inherits the limit that the shim has for itself.
    pub fn limit_files(&self, process: &mut ProcessPlan) {
        let Some(files) = self.files_of_processes else { return };
        if process.rlimits.iter().all(|limit| limit.resource != files.resource) {
            process.rlimits.push(files);
        }
    }

    /// Forgets container number `at`.
    pub fn forget(&mut self, at: usize) {
        self.containers[at].end_outputs();
        self.containers[at].clients.give_up();
        self.let_go(at);
        self.containers.remove(at);
    }

    /// After something was done with container number `at`: epoll watches what it should, clients at their end are let
    /// go, and an exit is told once the output has ended. Clients that are owed some of it then are told later.
    pub fn settle(&mut self, at: usize) {
        let announces = self.containers[at].may_announce(now());
        if announces {
            // What others still write is the log's.
            (0..2).for_each(|which| self.containers[at].clients.close(which));
        }
        self.containers[at].charge_clients();
        self.let_go(at);
        let container = &mut self.containers[at];
        let base = OUTPUTS + 2 * u64::from(container.serial);
        for (which, fd, watch) in container.watch_changes() {
            let result = if watch {
                epoll::add(&self.epoll, fd, EventData::new_u64(base + u64::from(which)), EventFlags::IN)
            } else {
                epoll::delete(&self.epoll, fd)
            };
            if let Err(errno) = result {
                eprintln!("knarr-shim: watch output {which} of a container: {errno}");
            }
        }
        for (serial, pipe, watch) in container.clients.watch_changes() {
            let flags = if watch { EventFlags::OUT } else { EventFlags::empty() };
            if let Err(errno) = epoll::modify(&self.epoll, pipe, EventData::new_u64(CLIENTS + serial), flags) {
                eprintln!("knarr-shim: watch a pipe of client {serial}: {errno}");
            }
        }
        if announces && let Some(exit) = container.exit {
            container.announce_by = None;
            let container = container.id.clone();
            self.tell(&Event::Exited { container, exit });
        }
    }

    fn on_signal(&mut self) {
        while let Ok(Some(received)) = signal::receive(&self.signals) {
            if received.signal == Signal::CHILD.as_raw() {
                self.reap();
            } else if !self.containers.iter().any(Container::is_running) {
                self.end(None);
            }
        }
    }

    /// Takes every child that has ended. A pid cannot have been given to another process before it is taken here, so
    /// it is a safe name: there is one thread, and the runtime leaves nobody whom it does not hand over.
    fn reap(&mut self) {
        while let Ok(Some((pid, ended))) = process::reap_any() {
            let finished_at = unix_nanoseconds();
            let exit = match ended {
                Ended::Exited(code) => Exit { code, signal: None, finished_at },
                Ended::Killed(signal) => Exit { code: 128 + signal, signal: Some(signal as u8), finished_at },
            };
            self.on_exit(pid, exit);
        }
    }

    fn on_exit(&mut self, pid: u32, exit: Exit) {
        if let Some(at) = self.containers.iter().position(|c| c.is_running() && c.child.pid == pid) {
            let container = &mut self.containers[at];
            if let Some(pod) = &self.pod {
                let record = ExitRecord { started_at: container.started_at, exit };
                if let Err(error) = write_record(&pod.run_dir, &container.id, &record) {
                    eprintln!("knarr-shim: write exit record of container {}: {error}", container.id);
                }
            }
            container.end(exit, &mut self.scratch);
            self.settle(at);
        } else if let Some(at) = self.execs.iter().position(|exec| exec.child.pid == pid) {
            let exec = self.execs.swap_remove(at);
            if self.connection.as_ref().is_some_and(|connection| connection.number == exec.connection) {
                self.tell(&Event::ExecExited { exec: exec.id, exit });
            }
        } else if let Some(pod) = &mut self.pod
            && pod.namespaces.pid_init.as_ref().is_some_and(|init| init.pid == pid)
        {
            pod.namespaces.pid_init = None;
            self.tell(&Event::PodInitExited { exit });
        }
        // Anybody else was an orphan of a container, which nobody asks for.
    }

    fn next_time(&self) -> Option<Instant> {
        let containers = self.containers.iter().filter_map(Container::next_time);
        let execs = self.execs.iter().filter_map(|exec| exec.kill_at);
        let ending = self.ending.iter().map(|ending| ending.by);
        containers.chain(execs).chain(ending).chain(self.give_up_at()).min()
    }

    /// When a shim that has no pod and no daemon ends.
    fn give_up_at(&self) -> Option<Instant> {
        (self.pod.is_none() && self.connection.is_none()).then(|| self.born + WAIT_FOR_POD)
    }

    fn on_time(&mut self, now: Instant) {
        for at in 0..self.containers.len() {
            if self.containers[at].next_time().is_some_and(|time| time <= now) {
                self.containers[at].on_time(now, &mut self.scratch);
                self.settle(at);
            }
        }
        for exec in &mut self.execs {
            if exec.kill_at.is_some_and(|at| at <= now) {
                exec.kill_at = None;
                kill(&exec.child);
            }
        }
        if self.give_up_at().is_some_and(|at| at <= now) {
            self.end(None);
        }
    }

    /// Begins the end: what still runs is killed, and `asked_by`, a request of the present connection, is answered
    /// when it is gone.
    pub fn end(&mut self, asked_by: Option<u64>) {
        for container in self.containers.iter().filter(|container| container.is_running()) {
            kill(&container.child);
        }
        self.execs.iter().for_each(|exec| kill(&exec.child));
        if let Some(init) = self.pod.as_ref().and_then(|pod| pod.namespaces.pid_init.as_ref()) {
            kill(init);
        }
        let connection = self.connection.as_ref().map(|connection| connection.number);
        // Asked twice, the first asker gets its answer with the connection's end.
        self.ending = Some(Ending { by: now() + END_AT_MOST, asked_by: connection.zip(asked_by) });
    }

    /// Nothing more may be started.
    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// The end is here: nothing is left to reap and the reply is on its way, or it has taken too long.
    fn has_ended(&mut self) -> bool {
        let Some(late) = self.ending.as_ref().map(|ending| ending.by <= now()) else { return false };
        if late {
            for at in 0..self.containers.len() {
                self.containers[at].clients.give_up();
                self.let_go(at);
            }
        }
        let init_is_left = self.pod.as_ref().is_some_and(|pod| pod.namespaces.pid_init.is_some());
        // Exits of containers and ends of clients must be told, too, before the reply says that there is nothing more
        // to hear.
        let left = |c: &Container| c.is_running() || c.announce_by.is_some() || c.clients.count() > 0;
        if self.containers.iter().any(left) || !self.execs.is_empty() || init_is_left {
            return late;
        }
        if let Some((connection, id)) = self.ending.as_mut().and_then(|ending| ending.asked_by.take())
            && self.connection.as_ref().is_some_and(|now| now.number == connection)
        {
            self.reply(id, &Reply::Done, Vec::new());
        }
        late || !self.connection.as_ref().is_some_and(Connection::is_behind)
    }
}

/// Writes an exit record by rename, so that whoever reads it reads it whole.
fn write_record(run_dir: &OwnedFd, container: &ContainerId, record: &ExitRecord) -> io::Result<()> {
    match rustix::fs::mkdirat(run_dir, DIRECTORY, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let path = format!("{DIRECTORY}/{container}");
    let new = format!("{path}.new");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(run_dir, new.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
    let text = record.text();
    if rustix::io::write(&file, text.as_bytes())? != text.len() {
        return Err(Errno::NOSPC.into());
    }
    Ok(rustix::fs::renameat(run_dir, new.as_str(), run_dir, path.as_str())?)
}

/// Ends a child for sure.
pub fn kill(child: &Child) {
    // It may have ended already; then it is about to be reaped.
    let _ = rustix::process::pidfd_send_signal(&child.pidfd, Signal::KILL);
}

/// The clock for waiting.
pub fn now() -> Instant {
    Instant::now()
}

/// The clock for people, in nanoseconds since 1970.
pub fn unix_nanoseconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn timespec(duration: Duration) -> rustix::event::Timespec {
    rustix::event::Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
