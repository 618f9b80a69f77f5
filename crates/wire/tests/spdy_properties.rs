//! Properties of SPDY sessions: two of them back to back agree, whatever is done and however the bytes are cut.

use bytes::BytesMut;
use knarr_wire::spdy::{Event, Headers, NotOpen, ResetStatus, Role, Session, StreamId, fuzz};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Which end does something: 0 is the client.
type Side = usize;

#[derive(Debug, Clone)]
enum Action {
    Open(Side, Vec<(String, String)>),
    /// Accepts the oldest stream that waits for it.
    Reply(Side),
    /// Sends on one of the streams, with `true` as the last.
    Send(Side, prop::sample::Index, usize, bool),
    Reset(Side, prop::sample::Index),
    Ping(Side),
    /// So many bytes arrive at this end.
    Arrive(Side, usize),
}

fn action() -> impl Strategy<Value = Action> {
    let side = 0_usize..2;
    let headers = vec(("[a-z]{1,8}", "[ -~]{0,12}"), 0..4);
    prop_oneof![
        3 => (side.clone(), headers).prop_map(|(side, headers)| Action::Open(side, headers)),
        4 => side.clone().prop_map(Action::Reply),
        8 => (side.clone(), any::<prop::sample::Index>(), 0_usize..300, prop::bool::weighted(0.2))
            .prop_map(|(side, stream, length, fin)| Action::Send(side, stream, length, fin)),
        1 => (side.clone(), any::<prop::sample::Index>()).prop_map(|(side, stream)| Action::Reset(side, stream)),
        1 => side.clone().prop_map(Action::Ping),
        10 => (side, 1_usize..400).prop_map(|(side, bytes)| Action::Arrive(side, bytes)),
    ]
}

/// One end, what it has done, and what it has seen.
struct End {
    session: Session,
    /// On its way to this end.
    wire: BytesMut,
    input: BytesMut,
    unanswered: Vec<StreamId>,
    headers_sent: BTreeMap<StreamId, Headers>,
    headers_seen: BTreeMap<StreamId, Headers>,
    sent: BTreeMap<StreamId, Vec<u8>>,
    received: BTreeMap<StreamId, Vec<u8>>,
    finished: BTreeSet<StreamId>,
    saw_finish: BTreeSet<StreamId>,
    resets: BTreeSet<StreamId>,
    pings: u32,
    pongs: u32,
}

impl End {
    fn new(role: Role) -> Self {
        Self {
            session: Session::new(role),
            wire: BytesMut::new(),
            input: BytesMut::new(),
            unanswered: Vec::new(),
            headers_sent: BTreeMap::new(),
            headers_seen: BTreeMap::new(),
            sent: BTreeMap::new(),
            received: BTreeMap::new(),
            finished: BTreeSet::new(),
            saw_finish: BTreeSet::new(),
            resets: BTreeSet::new(),
            pings: 0,
            pongs: 0,
        }
    }

    /// Takes bytes off the wire; what it answers goes to the other's.
    fn arrive(&mut self, bytes: usize, to_other: &mut BytesMut) {
        self.input.unsplit(self.wire.split_to(bytes.min(self.wire.len())));
        while let Some(event) = self.session.next_event(&mut self.input, to_other).expect("both keep to the protocol") {
            match event {
                Event::Opened { stream, headers, fin } => {
                    assert!(!fin);
                    self.headers_seen.insert(stream, headers);
                    self.unanswered.push(stream);
                }
                Event::Replied { stream, fin } => assert!(!fin && self.headers_sent.contains_key(&stream)),
                Event::Data { stream, bytes, fin } => {
                    assert!(!self.resets.contains(&stream) && !self.saw_finish.contains(&stream));
                    assert!(fin || !bytes.is_empty());
                    self.received.entry(stream).or_default().extend_from_slice(&bytes);
                    if fin {
                        self.saw_finish.insert(stream);
                    }
                }
                Event::Reset { stream, status } => {
                    assert_eq!(status, ResetStatus::Cancel);
                    self.resets.insert(stream);
                }
                Event::Pong(_) => self.pongs += 1,
                Event::GoAway { .. } => panic!("nobody goes"),
            }
        }
    }

    fn perform(&mut self, action: Action, output: &mut BytesMut) {
        let streams: BTreeSet<StreamId> = self.session.streams().collect();
        let streams: Vec<StreamId> = streams.into_iter().collect();
        match action {
            Action::Open(_, headers) => {
                let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
                let Some(made) = Headers::new(&headers) else {
                    assert!(self.session.open(&headers, output).is_err());
                    return;
                };
                let stream = self.session.open(&headers, output).unwrap();
                assert_eq!(self.headers_sent.insert(stream, made), None);
            }
            Action::Reply(_) if !self.unanswered.is_empty() => {
                let stream = self.unanswered.remove(0);
                let there = self.session.can_send(stream);
                assert_eq!(self.session.reply(stream, output).is_ok(), there);
            }
            Action::Send(_, index, length, fin) if !streams.is_empty() => {
                let stream = *index.get(&streams);
                match self.session.data_header(stream, length, fin) {
                    Ok(header) => {
                        let sent = self.sent.entry(stream).or_default();
                        let bytes: Vec<u8> = (sent.len()..sent.len() + length).map(|n| (n * 7 % 251) as u8).collect();
                        sent.extend_from_slice(&bytes);
                        output.extend_from_slice(&header);
                        output.extend_from_slice(&bytes);
                        if fin {
                            self.finished.insert(stream);
                        }
                    }
                    Err(NotOpen::Reply) => assert!(self.unanswered.contains(&stream)),
                    Err(NotOpen::Closed) => assert!(self.finished.contains(&stream)),
                    Err(NotOpen::TooLong) => panic!("it is not"),
                }
            }
            Action::Reset(_, index) if !streams.is_empty() => {
                let stream = *index.get(&streams);
                self.session.reset(stream, ResetStatus::Cancel, output);
                self.resets.insert(stream);
            }
            Action::Ping(_) => {
                self.session.ping(output);
                self.pings += 1;
            }
            Action::Reply(_) | Action::Send(..) | Action::Reset(..) | Action::Arrive(..) => {}
        }
    }
}

fn side(action: &Action) -> Side {
    match action {
        Action::Open(side, _)
        | Action::Reply(side)
        | Action::Send(side, ..)
        | Action::Reset(side, _)
        | Action::Ping(side)
        | Action::Arrive(side, _) => *side,
    }
}

/// Does everything, then lets all bytes arrive.
fn play(actions: Vec<Action>) -> [End; 2] {
    let mut ends = [End::new(Role::Client), End::new(Role::Server)];
    for action in actions {
        let (mine, mut to_other) = (side(&action), BytesMut::new());
        match action {
            Action::Arrive(_, bytes) => ends[mine].arrive(bytes, &mut to_other),
            other => ends[mine].perform(other, &mut to_other),
        }
        ends[1 - mine].wire.unsplit(to_other);
    }
    while ends.iter().any(|end| !end.wire.is_empty()) {
        for mine in 0..2 {
            let mut to_other = BytesMut::new();
            ends[mine].arrive(usize::MAX, &mut to_other);
            ends[1 - mine].wire.unsplit(to_other);
        }
    }
    ends
}

proptest! {
    #[test]
    fn two_sessions_agree(actions in vec(action(), 0..120)) {
        let ends = play(actions);
        for (me, other) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
            let streams = |end: &End| end.session.streams().collect::<BTreeSet<_>>();
            prop_assert_eq!(streams(me), streams(other));
            prop_assert!(me.input.is_empty());
            prop_assert_eq!(&me.headers_sent, &other.headers_seen);
            prop_assert!(me.pongs <= me.pings && (me.pings == 0 || me.pongs > 0));
            for (stream, sent) in &me.sent {
                let received = other.received.get(stream).cloned().unwrap_or_default();
                if me.resets.contains(stream) || other.resets.contains(stream) {
                    prop_assert!(sent.starts_with(&received));
                } else {
                    prop_assert_eq!(sent, &received);
                    prop_assert_eq!(me.finished.contains(stream), other.saw_finish.contains(stream));
                }
            }
            prop_assert!(other.received.keys().all(|stream| me.sent.contains_key(stream)));
            let ended: BTreeSet<_> = me.finished.intersection(&me.saw_finish).collect();
            prop_assert!(me.session.streams().all(|stream| !ended.contains(&stream) && !me.resets.contains(&stream)));
        }
    }

    #[test]
    fn garbage_never_panics_however_it_is_cut(data in vec(any::<u8>(), 0..400)) {
        fuzz::session(&data);
        fuzz::headers(&data);
    }

    /// Frames whose first eight bytes are right more often than chance has it.
    #[test]
    fn frames_of_garbage_never_panic(
        first: u8,
        frames in vec((prop_oneof![Just(0_u8), Just(0x80)], 0_u8..12, any::<u8>(), vec(any::<u8>(), 0..40)), 0..12),
    ) {
        let mut data = vec![first];
        for (control, kind, flags, body) in frames {
            let version = if control == 0 { 0 } else { 3 };
            data.extend_from_slice(&[control, version, 0, kind, flags, 0, 0, body.len() as u8]);
            data.extend_from_slice(&body);
        }
        fuzz::session(&data);
    }

    /// Real frames, with some bytes changed and cut somewhere.
    #[test]
    fn damaged_conversations_never_panic(
        actions in vec(action(), 0..40),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        first: u8,
    ) {
        let (mut end, mut data) = (End::new(Role::Client), BytesMut::new());
        for action in actions {
            end.perform(action, &mut data);
        }
        let mut data = [&[first & !1][..], &data].concat();
        for (at, value) in damage {
            *at.get_mut(&mut data[..]) = value;
        }
        fuzz::session(&data);
    }
}
