//! Exec, Attach and PortForward: check what is asked for and give a URL. What happens at the URL is
//! [`crate::streaming`]'s.

use super::convert::check_arguments;
use super::runtime::{Runtime, not_empty};
use crate::streaming::must_run;
use knarr_cri_api::v1;
use knarr_model::view::ContainerView;
use knarr_model::{Error, ErrorKind};
use knarr_streaming::Wanted;

/// Ports of one request; a pod that listens on more is not one that somebody forwards.
const PORTS_MAX: usize = 256;

impl Runtime {
    pub(super) fn offer_exec(&self, request: v1::ExecRequest) -> Result<String, Error> {
        let v1::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request;
        not_empty("container_id", &container_id)?;
        if cmd.is_empty() {
            return Err(Error::invalid("cmd", "is empty"));
        }
        check_arguments("cmd", &cmd)?;
        let wanted = wanted(Wanted { stdin, stdout, stderr, tty })?;
        let (pod, container) = self.node.container(&container_id)?;
        must_run(&container)?;
        self.streams.exec(pod, container.id, cmd, wanted)
    }

    pub(super) fn offer_attach(&self, request: &v1::AttachRequest) -> Result<String, Error> {
        let v1::AttachRequest { container_id, stdin, tty, stdout, stderr } = request;
        not_empty("container_id", container_id)?;
        let wanted = wanted(Wanted { stdin: *stdin, stdout: *stdout, stderr: *stderr, tty: *tty })?;
        let (pod, container) = self.node.container(container_id)?;
        must_run(&container)?;
        fits(&container, wanted)?;
        self.streams.attach(pod, container.id, wanted)
    }

    pub(super) fn offer_port_forward(&self, request: &v1::PortForwardRequest) -> Result<String, Error> {
        not_empty("pod_sandbox_id", &request.pod_sandbox_id)?;
        let ports = ports(&request.port)?;
        let pod = self.node.pod(&request.pod_sandbox_id)?;
        let view = pod.view();
        if view.hidden {
            return Err(Error::not_found("pod", &request.pod_sandbox_id));
        }
        if !view.ready {
            let message = format!("pod {} ({}/{}) is not ready", view.id.short(), view.spec.namespace, view.spec.name);
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        self.streams.port_forward(pod, ports)
    }
}

/// The rules that CRI sets for the streams of a command.
fn wanted(wanted: Wanted) -> Result<Wanted, Error> {
    if wanted.tty && wanted.stderr {
        return Err(Error::invalid("stderr", "cannot be had with tty: a terminal has one output, which is stdout"));
    }
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return Err(Error::invalid("stdin, stdout, stderr", "at least one must be set"));
    }
    Ok(wanted)
}

/// A container's streams are as they were created.
///
/// Without `tty` a container's terminal can be attached to all the same: its output is the stdout of a client that
/// does not know terminals.
fn fits(container: &ContainerView, wanted: Wanted) -> Result<(), Error> {
    let named = || format!("container {} ({})", container.id.short(), container.spec.name);
    if wanted.tty && !container.spec.tty {
        return Err(Error::invalid("tty", format!("{} was created without a terminal", named())));
    }
    if wanted.stdin && !container.spec.stdin {
        return Err(Error::invalid("stdin", format!("{} was created without stdin", named())));
    }
    Ok(())
}

fn ports(ports: &[i32]) -> Result<Vec<u16>, Error> {
    if ports.len() > PORTS_MAX {
        return Err(Error::invalid("port", format!("has more than {PORTS_MAX} entries")));
    }
    let port = |port: &i32| match u16::try_from(*port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Error::invalid("port", format!("{port} is no port: 1 to 65535"))),
    };
    ports.iter().map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_at_least_one_stream_and_no_stderr_beside_a_terminal() {
        let of = |stdin, stdout, stderr, tty| wanted(Wanted { stdin, stdout, stderr, tty });
        assert!(of(true, true, true, false).is_ok());
        assert!(of(true, true, false, true).is_ok());
        assert!(of(false, false, true, false).is_ok());
        for (bad, field) in [(of(true, true, true, true), "stderr"), (of(false, false, false, true), "stdin, stdout")] {
            let error = bad.unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
            assert!(error.message.contains(field), "{error}");
        }
    }

    #[test]
    fn ports_are_ports() {
        assert!(ports(&[]).unwrap().is_empty());
        assert_eq!(ports(&[1, 65_535]).unwrap(), [1, 65_535]);
        for bad in [0, -1, 65_536, i32::MAX] {
            assert!(ports(&[80, bad]).unwrap_err().message.contains(&bad.to_string()));
        }
        assert!(ports(&vec![80; PORTS_MAX + 1]).is_err());
    }
}
