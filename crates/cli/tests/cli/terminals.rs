//! `exec -it` and `attach` on a terminal: it is raw meanwhile and as before afterwards, whichever way it ends.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex};

use knarr_cri_api::v1::ContainerConfig;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, Termios, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use crate::Fixture;
use crate::fake::id;
use crate::lists::node;
use crate::streams::eventually;

/// What no program here writes.
const LAST: &[u8] = b"\x07the end\x07";

/// A terminal with a program on it.
struct Screen {
    master: File,
    slave: OwnedFd,
    before: Termios,
    shown: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

impl Screen {
    fn new(node: &Fixture, args: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        // Something that only its former owner knows of.
        let mut before = tcgetattr(&slave).unwrap();
        before.local_modes.remove(LocalModes::ECHOCTL);
        tcsetattr(&slave, OptionalActions::Now, &before).unwrap();
        set_size(&slave, 80, 24);
        let stream = || slave.try_clone().unwrap();
        let child = node.command(args).stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
        let master = File::from(master);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, copy) = (master.try_clone().unwrap(), shown.clone());
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut some) {
                copy.lock().unwrap().extend_from_slice(&some[..length]);
            }
        });
        Self { master, slave, before, shown, child }
    }

    fn shows(&self, text: &str) {
        eventually(&format!("{text:?} is on the screen"), || self.text().contains(text));
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    fn type_in(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.slave).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn is_as_before(&self) -> bool {
        let now = tcgetattr(&self.slave).unwrap();
        (now.local_modes, now.input_modes, now.output_modes, now.control_modes)
            == (self.before.local_modes, self.before.input_modes, self.before.output_modes, self.before.control_modes)
    }

    fn ends(mut self) -> (i32, String) {
        let mut status: Option<ExitStatus> = None;
        eventually("it ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(self.is_as_before(), "the terminal is left in other modes");
        // What it wrote last may not have been copied yet; this comes behind it.
        rustix::io::write(&self.slave, LAST).unwrap();
        let last = String::from_utf8_lossy(LAST);
        self.shows(&last);
        (status.and_then(|status| status.code()).unwrap_or(-1), self.text().replace(&*last, ""))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(terminal: &OwnedFd, columns: u16, rows: u16) {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

fn at_work(node: &Fixture) -> Screen {
    let screen = Screen::new(node, &["exec", "-it", "log", "sizes"]);
    screen.shows("80x24");
    assert!(screen.is_raw());
    screen
}

#[test]
fn keys_and_sizes_go_to_the_command() {
    let node = node();
    for transport in ["spdy", "websocket"] {
        let mut screen = Screen::new(&node, &["exec", "--transport", transport, "-it", "log", "sizes"]);
        screen.shows("80x24");
        assert!(screen.is_raw());
        // Ctrl-C, Ctrl-Z and Ctrl-\ are keys like any other.
        screen.type_in(b"\x03\x1a\x1c");
        screen.shows(r#"typed b"\x03\x1a\x1c""#);
        set_size(&screen.slave, 132, 50);
        screen.signal(Signal::WINCH);
        screen.shows("132x50");
        screen.type_in(b"q");
        let (code, text) = screen.ends();
        assert_eq!(code, 0);
        assert!(text.starts_with("80x24\r\n"), "{text:?}");
    }
    assert_eq!(node.calls()[0], "exec log stdin stdout tty");
}

#[test]
fn a_signal_ends_it_and_leaves_the_terminal_as_it_was() {
    let node = node();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
        let screen = at_work(&node);
        screen.signal(signal);
        let (code, _) = screen.ends();
        assert_eq!(code, 128 + signal.as_raw());
    }
}

#[test]
fn a_failure_leaves_the_terminal_as_it_was() {
    let node = node();
    let (code, text) = Screen::new(&node, &["exec", "-it", "log", "fail", "the shim has gone"]).ends();
    assert_eq!(code, 125);
    // The message is written in usual modes: a newline returns the carriage.
    assert!(text.contains(" cannot run \"fail\" in container log: "), "{text:?}");
    assert!(text.ends_with("the shim has gone\r\n"), "{text:?}");
}

#[test]
fn a_stop_gives_the_terminal_back_for_its_time() {
    let node = node();
    let mut screen = at_work(&node);
    screen.signal(Signal::TSTP);
    let state = format!("/proc/{}/stat", screen.child.id());
    eventually("it stops", || std::fs::read_to_string(&state).unwrap().contains(") T "));
    assert!(screen.is_as_before());
    set_size(&screen.slave, 100, 30);
    screen.signal(Signal::CONT);
    screen.shows("100x30");
    assert!(screen.is_raw());
    screen.type_in(b"q");
    assert_eq!(screen.ends().0, 0);
}

#[test]
fn output_alone_leaves_the_terminal_alone() {
    let node = node();
    let screen = Screen::new(&node, &["exec", "-t", "log", "stay"]);
    screen.shows("here");
    assert!(screen.is_as_before());
    assert_eq!(node.calls()[0], "exec log stdout tty");
}

fn attached(args: &[&str]) -> (Fixture, Screen) {
    let node = node();
    let config = ContainerConfig { tty: true, stdin: true, ..ContainerConfig::default() };
    node.tables.lock().unwrap().container_configs.insert(id("cc12"), config);
    let screen = Screen::new(&node, &[&["attach", "log"], args].concat());
    screen.shows("attached stdin stdout tty");
    (node, screen)
}

#[test]
fn detach_keys_leave_the_container_running() {
    let (_node, mut screen) = attached(&[]);
    eventually("the terminal is raw", || screen.is_raw());
    screen.type_in(b"a\x10");
    screen.shows(r#"typed b"a""#);
    screen.type_in(b"b");
    screen.shows(r#"typed b"\x10b""#);
    screen.type_in(b"\x10");
    screen.type_in(b"\x11");
    let (code, text) = screen.ends();
    assert_eq!(code, 0);
    assert!(text.ends_with("detached from container log, which goes on running\r\n"), "{text:?}");
}

#[test]
fn other_keys_can_be_chosen_or_none() {
    let (_node, mut screen) = attached(&["--detach-keys", "ctrl-x,x"]);
    eventually("the terminal is raw", || screen.is_raw());
    screen.type_in(b"\x10\x11");
    screen.shows(r#"typed b"\x10\x11""#);
    screen.type_in(b"\x18x");
    assert_eq!(screen.ends().0, 0);

    let (_node, mut screen) = attached(&["--detach-keys", ""]);
    eventually("the terminal is raw", || screen.is_raw());
    screen.type_in(b"\x10\x11");
    screen.shows(r#"typed b"\x10\x11""#);
    screen.type_in(b"end");
    assert_eq!(screen.ends().0, 7);
}
