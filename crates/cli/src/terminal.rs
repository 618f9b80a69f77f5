//! The user's terminal while a program elsewhere has it: raw, its size passed on, and as it was before on every way out.
//!
//! The ways out are the end of the session and any error (the guard's drop), SIGINT, SIGTERM, SIGHUP and SIGQUIT (which
//! become events here, and the caller leaves), SIGTSTP and SIGCONT (handled here), and a panic (a hook, since release
//! builds abort without unwinding). SIGKILL and SIGSTOP cannot be caught; after SIGSTOP the shell puts its own modes
//! back. What the terminal shows is not this file's business.

use std::future::pending;
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use knarr_streaming::TerminalSize;
use rustix::io::Errno;
use rustix::process::{Signal as Number, getpgrp, getpid, kill_process};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;
use crate::signals::Signals;

/// A terminal in raw mode; dropped, it is as it was before.
#[derive(Debug)]
pub struct RawTerminal {
    modes: Arc<Modes>,
}

#[derive(Debug)]
struct Modes {
    terminal: OwnedFd,
    before: Termios,
    raw: Termios,
    /// The guard has gone, and the terminal is somebody else's again.
    left: AtomicBool,
}

impl RawTerminal {
    /// Makes the terminal raw: every key goes to the program elsewhere, Ctrl-C and Ctrl-Z too, and only it echoes.
    ///
    /// # Errors
    /// It is no terminal, or it has gone.
    pub fn enter(terminal: impl AsFd) -> std::io::Result<Self> {
        // A descriptor of its own, so that the modes can be put back whatever becomes of standard input.
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        let modes = Arc::new(Modes { terminal, before, raw, left: AtomicBool::new(false) });
        restore_on_panic(modes.clone());
        // From the background this stops the process until it is in front, as of any program that wants the terminal.
        modes.set(&modes.raw)?;
        Ok(Self { modes })
    }

    /// Puts the modes back for a while, as for a stop.
    fn suspend(&self) {
        self.modes.restore();
    }

    /// Raw again, if the terminal is ours again. Returns whether it is.
    fn resume(&self) -> bool {
        let ours = is_in_front(&self.modes.terminal);
        if ours {
            // Where this fails the terminal has gone, which reading from it will tell.
            let _ = self.modes.set(&self.modes.raw);
        }
        ours
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        self.modes.restore();
        self.modes.left.store(true, Ordering::SeqCst);
    }
}

impl Modes {
    fn set(&self, modes: &Termios) -> rustix::io::Result<()> {
        loop {
            // At once: waiting for output to drain would wait for a terminal that is held or has gone. Bytes already
            // written were processed by the modes of their time.
            match tcsetattr(&self.terminal, OptionalActions::Now, modes) {
                Err(Errno::INTR) => {}
                outcome => return outcome,
            }
        }
    }

    /// In the background the modes are those of whoever is in front, and setting them would stop this process for good.
    fn restore(&self) {
        if is_in_front(&self.terminal) {
            let _ = self.set(&self.before);
        }
    }
}

/// Whether this process may read from the terminal and set its modes. One that does not control it has no foreground
/// for it.
pub fn is_in_front(terminal: impl AsFd) -> bool {
    tcgetpgrp(terminal).map_or(true, |in_front| in_front == getpgrp())
}

/// A release build aborts on a panic, and no guard is dropped. The hook runs before its message is printed, so that the
/// message does not run in stairs across the screen.
fn restore_on_panic(modes: Arc<Modes>) {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !modes.left.load(Ordering::SeqCst) {
            modes.restore();
        }
        previous(panic);
    }));
}

/// What happens at the terminal during a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It has, or may have, another size.
    Resized,
    /// This signal, by its number, asks this process to end.
    Ended(u8),
}

/// The terminal of one session.
pub struct SessionTerminal {
    raw: Option<(RawTerminal, RawSignals)>,
    resized: Option<Signal>,
}

struct RawSignals {
    /// The process goes on in the background, of whose end no signal tells.
    in_background: bool,
    ending: Signals,
    quit: Signal,
    stop: Signal,
    go_on: Signal,
}

impl SessionTerminal {
    /// `remote_terminal`: there is one at the other end, which follows the size of ours. `with_input`: its keys come
    /// from here, and so ours becomes raw, if standard input is one.
    pub fn new(remote_terminal: bool, with_input: bool) -> Result<Self, Failure> {
        if !remote_terminal {
            return Ok(Self { raw: None, resized: None });
        }
        let resized = Some(take(SignalKind::window_change())?);
        if !with_input || !std::io::stdin().is_terminal() {
            return Ok(Self { raw: None, resized });
        }
        // Before the terminal is raw, so that no signal finds it raw and unguarded.
        let signals = RawSignals {
            in_background: false,
            ending: Signals::take_over()?,
            quit: take(SignalKind::quit())?,
            stop: take(SignalKind::from_raw(Number::TSTP.as_raw()))?,
            go_on: take(SignalKind::from_raw(Number::CONT.as_raw()))?,
        };
        let raw = RawTerminal::enter(std::io::stdin()).map_err(|error| Failure::io("make the terminal raw", &error))?;
        Ok(Self { raw: Some((raw, signals)), resized })
    }

    /// Whether keys come as they are typed.
    pub fn is_raw(&self) -> bool {
        self.raw.is_some()
    }

    /// The size of the terminal that the output goes to, else of another standard stream's.
    pub fn size(&self) -> Option<TerminalSize> {
        self.resized.as_ref()?;
        size_of(std::io::stdout()).or_else(|| size_of(std::io::stdin())).or_else(|| size_of(std::io::stderr()))
    }

    /// Waits for the next event; for ever where there is no terminal. Stops and continuations are seen to here.
    pub async fn next(&mut self) -> Event {
        let Some((raw, signals)) = &mut self.raw else {
            receive(self.resized.as_mut()).await;
            return Event::Resized;
        };
        loop {
            tokio::select! {
                signal = signals.ending.next() => return Event::Ended(signal),
                () = receive(Some(&mut signals.quit)) => return Event::Ended(SIGQUIT),
                () = receive(self.resized.as_mut()) => return Event::Resized,
                () = receive(Some(&mut signals.stop)) => {
                    raw.suspend();
                    // This thread is the process's first, which takes the signal before the call returns. The next
                    // thing that happens is SIGCONT.
                    let _ = kill_process(getpid(), Number::STOP);
                }
                () = receive(Some(&mut signals.go_on)) => signals.in_background = true,
                () = tokio::time::sleep(BACKGROUND_POLL), if signals.in_background => {}
            }
            if signals.in_background && raw.resume() {
                signals.in_background = false;
                // The window may have changed meanwhile, of which a stopped process is told only now or not at all.
                return Event::Resized;
            }
        }
    }
}

const SIGQUIT: u8 = 3;

/// How often a process in the background looks whether it is in front again: at once to the eye.
pub const BACKGROUND_POLL: Duration = Duration::from_millis(200);

fn take(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::io("handle signals", &error))
}

async fn receive(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            // `None` would say that there will be no more signals.
            if signal.recv().await.is_none() {
                pending().await
            }
        }
        None => pending().await,
    }
}

/// `None` for what is no terminal, and for one that nobody has given a size.
fn size_of(terminal: impl AsFd) -> Option<TerminalSize> {
    let size = tcgetwinsize(terminal).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(TerminalSize { columns: size.ws_col, rows: size.ws_row })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::{LocalModes, OutputModes, Winsize, tcsetwinsize};

    /// The hook for panics restores every terminal that is raw: one test at a time has one.
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

    fn pair() -> (OwnedFd, OwnedFd) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        (master, slave)
    }

    fn is_raw(terminal: &OwnedFd) -> bool {
        let modes = tcgetattr(terminal).unwrap();
        let cooked_input = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        assert_eq!(modes.local_modes.intersects(cooked_input), modes.output_modes.contains(OutputModes::OPOST));
        !modes.local_modes.intersects(cooked_input)
    }

    #[test]
    fn a_terminal_is_raw_while_the_guard_lives_and_then_as_before() {
        let _turn = ONE_AT_A_TIME.lock().unwrap();
        let (_master, slave) = pair();
        let mut odd = tcgetattr(&slave).unwrap();
        odd.local_modes.remove(LocalModes::ECHOCTL);
        tcsetattr(&slave, OptionalActions::Now, &odd).unwrap();
        let guard = RawTerminal::enter(&slave).unwrap();
        assert!(is_raw(&slave));
        guard.suspend();
        assert!(!is_raw(&slave));
        assert!(guard.resume());
        assert!(is_raw(&slave));
        drop(guard);
        assert!(!is_raw(&slave));
        assert_eq!(tcgetattr(&slave).unwrap().local_modes, odd.local_modes);
    }

    #[test]
    fn a_panic_anywhere_restores_the_terminal() {
        let _turn = ONE_AT_A_TIME.lock().unwrap();
        let (_master, slave) = pair();
        let guard = RawTerminal::enter(&slave).unwrap();
        // Of another thread, so that nothing but the hook can have done it.
        let panicked = std::thread::spawn(|| panic!("a test's own panic")).join();
        assert!(panicked.is_err());
        assert!(!is_raw(&slave));
        drop(guard);
    }

    #[test]
    fn what_is_no_terminal_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(RawTerminal::enter(&file).is_err());
        assert_eq!(size_of(&file), None);
    }

    #[test]
    fn a_size_is_known_once_somebody_has_set_it() {
        let (master, slave) = pair();
        assert_eq!(size_of(&slave), None);
        tcsetwinsize(&master, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        assert_eq!(size_of(&slave), Some(TerminalSize { columns: 80, rows: 24 }));
    }
}
