//! What the daemon asks for, one function each: check, let the runtime do it, take over what it made, answer. It
//! waits for nothing but the runtime.

use std::os::fd::{AsFd, OwnedFd};

use knarr_model::ContainerId;
use knarr_model::plan::{ContainerPlan, ExecPlan, FdIndex, Namespace, PodPlan, StartFailure};
use knarr_runtime::{PodNamespaces, Stdio};
use knarr_wire::shim::codec::decode;
use knarr_wire::shim::{
    AttachPlan, ContainerEntry, ContainerList, Frame, Hello, PROTOCOL_VERSION, PodIsUp, Reply, Request, ShimIs,
};
use rustix::io::Errno;

use crate::attach::{ATTACHES_MAX, as_pipe};
use crate::container::{Container, make_pipes};
use crate::log::Log;
use crate::supervisor::{Exec, Pod, Supervisor, kill};

/// Containers that one shim keeps, running or not: a pidfd of each and the pod's descriptors fit into one list.
const CONTAINERS_MAX: usize = 240;

/// Execs at the same time: each costs the shim two descriptors and a process.
const EXECS_MAX: usize = 256;

/// A reply, and the descriptors that go with it.
type Answer = Result<(Reply, Vec<OwnedFd>), Reply>;

/// Serves one request.
pub fn serve(shim: &mut Supervisor, frame: Frame<OwnedFd>) {
    let (id, fds) = (frame.id, frame.fds);
    let answer = match decode::<Request>(&frame.body) {
        Ok(Request::SetUpPod(_) | Request::StartContainer(_) | Request::Exec(_) | Request::Attach(_))
            if shim.is_ending() =>
        {
            Err(Reply::Refused("the shim is ending".into()))
        }
        Ok(Request::Hello(hello)) => hello_to(shim, &hello),
        Ok(Request::SetUpPod(plan)) => set_up_pod(shim, &plan, &fds),
        Ok(Request::StartContainer(plan)) => start_container(shim, plan, &fds),
        Ok(Request::Exec(plan)) => exec(shim, plan, &fds),
        Ok(Request::ReopenLog(container)) => reopen_log(shim, &container),
        Ok(Request::ListContainers) => list_containers(shim),
        Ok(Request::ForgetContainer(container)) => forget_container(shim, &container),
        Ok(Request::Shutdown { force }) => return shutdown(shim, id, force),
        Ok(Request::Ping) => Ok((Reply::Done, Vec::new())),
        Ok(Request::Attach(plan)) => attach(shim, &plan, &fds),
        Err(malformed) => Err(Reply::Refused(format!("request not understood: {malformed}"))),
    };
    let (reply, fds) = answer.unwrap_or_else(|refusal| (refusal, Vec::new()));
    shim.reply(id, &reply, fds);
    if matches!(reply, Reply::Attached(_)) {
        // A client of outputs that have ended is at its end; that is told after its beginning.
        (0..shim.containers.len()).for_each(|at| shim.settle(at));
    }
}

fn hello_to(shim: &Supervisor, hello: &Hello) -> Answer {
    if hello.protocol_version != PROTOCOL_VERSION {
        let why = format!("this shim speaks version {PROTOCOL_VERSION}, the daemon {}", hello.protocol_version);
        return Err(Reply::Refused(why));
    }
    let reply = ShimIs {
        protocol_version: PROTOCOL_VERSION,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        pod: shim.pod.as_ref().map(|pod| pod.id.clone()),
    };
    Ok((Reply::ShimIs(reply), Vec::new()))
}

fn set_up_pod(shim: &mut Supervisor, plan: &PodPlan, fds: &[OwnedFd]) -> Answer {
    if shim.pod.is_some() {
        return Err(Reply::Refused("the pod has been set up already".into()));
    }
    let run_dir = duplicate(fds, plan.run_dir).map_err(|errno| failed("take the run-time directory", errno, ""))?;
    let namespaces = knarr_runtime::set_up_pod(plan, fds).map_err(Reply::StartFailed)?;
    // After the namespaces: their init must not inherit it.
    if let Err(errno) = knarr_sys::process::set_own_oom_score(plan.shim_oom_score_adj) {
        eprintln!("knarr-shim: set own oom_score_adj to {}: {errno}", plan.shim_oom_score_adj);
    }
    let pod = shim.pod.insert(Pod { id: plan.id.clone(), namespaces, run_dir });
    let (flags, fds) = pod_fds(&pod.namespaces).map_err(|errno| failed("hand over the namespaces", errno, ""))?;
    Ok((Reply::PodIsUp(flags), fds))
}

fn start_container(shim: &mut Supervisor, mut plan: ContainerPlan, fds: &[OwnedFd]) -> Answer {
    shim.limit_files(&mut plan.process);
    let plan = &plan;
    let Some(pod) = &shim.pod else { return Err(Reply::Refused("the pod has not been set up".into())) };
    if shim.containers.iter().any(|container| container.id == plan.id) {
        return Err(Reply::Refused(format!("container {} has been started already", plan.id)));
    }
    if shim.containers.len() >= CONTAINERS_MAX {
        return Err(Reply::Refused(format!("the pod has {CONTAINERS_MAX} containers already")));
    }
    let target = match &plan.pid_ns {
        Namespace::Host | Namespace::Pod | Namespace::Own => None,
        Namespace::Of(id) => {
            let target = running(shim, id);
            Some(target.ok_or_else(|| failed("join PID namespace of container", Errno::SRCH, id.as_str()))?)
        }
    };
    // The log is there before the process is, and even when it cannot be started: kubelet looks for it.
    let log_path = &plan.stdio.log_path;
    let log = (!log_path.is_empty())
        .then(|| Log::open(log_path))
        .transpose()
        .map_err(|error| failed("open log", error, &String::from_utf8_lossy(log_path)))?;
    let (stdio, pipes) =
        make_pipes(plan, shim.null.as_fd()).map_err(|error| failed("make pipes for container", error, ""))?;
    let target = target.map(|container| container.child.pidfd.as_fd());
    let started =
        knarr_runtime::start_container(&pod.namespaces, plan, fds, stdio, target).map_err(Reply::StartFailed)?;

    // From here the process is ours and is kept until it is forgotten. One that the daemon cannot hold is not wanted.
    let pidfd = started.child.pidfd.try_clone();
    if pidfd.is_err() {
        kill(&started.child);
    }
    shim.serials_used += 1;
    let container = Container::new(plan, shim.serials_used, started, pipes, log);
    let reply = Reply::Started { pid: container.child.pid, started_at: container.started_at };
    shim.containers.push(container);
    shim.settle(shim.containers.len() - 1);
    Ok((reply, vec![pidfd.map_err(|error| failed("hand over the process", error, ""))?]))
}

fn exec(shim: &mut Supervisor, mut plan: ExecPlan, fds: &[OwnedFd]) -> Answer {
    shim.limit_files(&mut plan.process);
    let plan = &plan;
    let Some(connection) = shim.connection.as_ref().map(|connection| connection.number) else {
        return Err(Reply::Refused("nobody is connected".into()));
    };
    if shim.execs.len() >= EXECS_MAX {
        return Err(Reply::Refused(format!("{EXECS_MAX} execs run in this pod already")));
    }
    let container = running(shim, &plan.container)
        .ok_or_else(|| failed("find running container", Errno::SRCH, plan.container.as_str()))?;
    let end = |index: Option<FdIndex>| match index {
        Some(index) if !plan.process.terminal => duplicate(fds, index),
        _ => rustix::io::fcntl_dupfd_cloexec(&shim.null, 3),
    };
    let stdio = (|| Ok(Stdio { stdin: end(plan.stdin)?, stdout: end(plan.stdout)?, stderr: end(plan.stderr)? }))()
        .map_err(|errno: Errno| failed("take the ends of the pipes", errno, ""))?;
    let user = shim.pod.as_ref().and_then(|pod| pod.namespaces.user.as_ref());
    let first = container.child.pidfd.as_fd();
    let started = knarr_runtime::exec(user, first, plan, fds, stdio).map_err(Reply::StartFailed)?;

    let reply = Reply::ExecStarted { pid: started.child.pid, terminal: started.terminal.is_some() };
    let pidfd = started.child.pidfd.try_clone();
    if pidfd.is_err() {
        kill(&started.child);
    }
    shim.execs.push(Exec { id: plan.id, child: started.child, connection, kill_at: None });
    let mut handed = vec![pidfd.map_err(|error| failed("hand over the process", error, ""))?];
    handed.extend(started.terminal);
    Ok((reply, handed))
}

fn attach(shim: &mut Supervisor, plan: &AttachPlan, fds: &[OwnedFd]) -> Answer {
    let id = &plan.container;
    let at = known(shim, id)?;
    let container = &shim.containers[at];
    if !container.is_running() {
        return Err(Reply::Refused(format!("container {id} has ended")));
    }
    if container.has_terminal && plan.stderr.is_some() {
        return Err(Reply::Refused(format!("container {id} has a terminal and with it no stderr of its own")));
    }
    let cannot = |what: &str, errno: Errno| Reply::Refused(format!("attach to container {id}: {what}: {errno}"));
    let pipe = |index: Option<FdIndex>| index.map(|index| as_pipe(duplicate(fds, index)?)).transpose();
    let stdout = pipe(plan.stdout).map_err(|errno| cannot("take the pipe for stdout", errno))?;
    let stderr = pipe(plan.stderr).map_err(|errno| cannot("take the pipe for stderr", errno))?;
    let listens = stdout.is_some() || stderr.is_some();
    let clients = shim.containers.iter().map(|container| container.clients.count()).sum::<usize>();
    if listens && clients >= ATTACHES_MAX {
        return Err(Reply::Exhausted(format!("{ATTACHES_MAX} clients are attached to this pod already")));
    }
    let client =
        shim.watched_client(plan.attach, [stdout, stderr]).map_err(|errno| cannot("watch its pipes", errno))?;
    // Last of what can fail: a stdin that is for one client is given away here.
    let (attached, input) = shim.containers[at].input(plan.stdin).map_err(|errno| {
        shim.unwatch(client.pipes());
        cannot("hand over its input", errno)
    })?;
    if listens {
        shim.containers[at].clients.add(client);
    }
    Ok((Reply::Attached(attached), input.into_iter().collect()))
}

fn reopen_log(shim: &mut Supervisor, id: &ContainerId) -> Answer {
    let at = known(shim, id)?;
    let result = shim.containers[at].reopen_log();
    shim.settle(at);
    result.map(|()| (Reply::Done, Vec::new())).map_err(Reply::Refused)
}

fn list_containers(shim: &Supervisor) -> Answer {
    let hand_over = |errno: Errno| failed("hand over the pod", errno, "");
    let (pod, mut fds) = match &shim.pod {
        Some(pod) => pod_fds(&pod.namespaces).map_err(hand_over)?,
        None => (PodIsUp::default(), Vec::new()),
    };
    let mut containers = Vec::with_capacity(shim.containers.len());
    for container in &shim.containers {
        if container.is_running() {
            fds.push(rustix::io::fcntl_dupfd_cloexec(&container.child.pidfd, 3).map_err(hand_over)?);
        }
        containers.push(ContainerEntry {
            id: container.id.clone(),
            pid: container.child.pid,
            started_at: container.started_at,
            exit: container.exit,
            stdin_open: container.stdin_open(),
        });
    }
    Ok((Reply::Containers(ContainerList { is_up: shim.pod.is_some(), pod, containers }), fds))
}

fn forget_container(shim: &mut Supervisor, id: &ContainerId) -> Answer {
    let at = known(shim, id)?;
    if shim.containers[at].is_running() {
        return Err(Reply::Refused(format!("container {id} is running")));
    }
    shim.forget(at);
    if let Some(pod) = &shim.pod {
        let record = format!("{}/{id}", knarr_wire::shim::exit_record::DIRECTORY);
        let _ = rustix::fs::unlinkat(&pod.run_dir, record, rustix::fs::AtFlags::empty());
    }
    Ok((Reply::Done, Vec::new()))
}

fn shutdown(shim: &mut Supervisor, id: u64, force: bool) {
    let running = shim.containers.iter().filter(|container| container.is_running()).count();
    if running > 0 && !force {
        return shim.reply(id, &Reply::Refused(format!("{running} containers are running")), Vec::new());
    }
    shim.end(Some(id));
}

fn running<'a>(shim: &'a Supervisor, id: &ContainerId) -> Option<&'a Container> {
    shim.containers.iter().find(|container| container.id == *id && container.is_running())
}

fn known(shim: &Supervisor, id: &ContainerId) -> Result<usize, Reply> {
    let at = shim.containers.iter().position(|container| container.id == *id);
    at.ok_or_else(|| Reply::Refused(format!("container {id} is not known to its shim")))
}

/// The pod's descriptors for the daemon, and which they are.
fn pod_fds(pod: &PodNamespaces) -> Result<(PodIsUp, Vec<OwnedFd>), Errno> {
    let init = pod.pid_init.as_ref().map(|init| &init.pidfd);
    let user = pod.user.as_ref().map(|user| &user.namespace);
    let all = [pod.net.as_ref(), pod.ipc.as_ref(), pod.uts.as_ref(), pod.pid.as_ref(), init, user];
    let fds = all.iter().flatten().map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3)).collect::<Result<_, _>>()?;
    let [net, ipc, uts, pid, pid_init, user] = all.map(|fd| fd.is_some());
    Ok((PodIsUp { net, ipc, uts, pid, pid_init, user }, fds))
}

fn duplicate(fds: &[OwnedFd], index: FdIndex) -> Result<OwnedFd, Errno> {
    let fd = fds.get(index.0 as usize).ok_or(Errno::BADF)?;
    rustix::io::fcntl_dupfd_cloexec(fd, 3)
}

fn failed(step: &str, error: impl Into<std::io::Error>, about: &str) -> Reply {
    let errno = error.into().raw_os_error().unwrap_or(0);
    Reply::StartFailed(StartFailure { step: step.into(), errno, about: about.into() })
}
