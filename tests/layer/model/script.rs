//! What each request of a run does, and how such scripts are made at random.

use std::{ops::Range, time::Duration};

use proptest::{collection::vec, prelude::*, sample::select};

/// What each thread sends: its requests overlap, and all threads send at once.
pub(crate) type Script = Vec<Vec<Scripted>>;

/// A client that does not leave earlier leaves now: after more than the hour that histograms tell apart.
pub(crate) const PATIENCE: Duration = Duration::from_millis(3 * 3_600_000 + 1);

/// One request. Whatever the service does takes an even number of milliseconds, and clients leave after an
/// odd one, so that nothing happens at the same instant as what would make it another outcome.
#[derive(Clone, Debug)]
pub(crate) struct Scripted {
    pub(crate) target: Target,
    /// Since the run began.
    pub(crate) starts: Duration,
    /// Does it carry a probe?
    pub(crate) paired: bool,
    /// Does it pass by the limiter?
    pub(crate) passes: bool,
    pub(crate) answer: Answer,
    pub(crate) client: Client,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Target {
    GetItem,
    HeadItem,
    PostItem,
    GetOrders,
    /// Methods that the route has not.
    DeleteItem,
    BrewItem,
    /// Paths that no route matches.
    Nowhere,
    BrewNowhere,
}

impl Target {
    const ALL: [Self; 8] = [
        Self::GetItem,
        Self::HeadItem,
        Self::PostItem,
        Self::GetOrders,
        Self::DeleteItem,
        Self::BrewItem,
        Self::Nowhere,
        Self::BrewNowhere,
    ];
}

/// What the service does.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// From the request to what follows.
    pub(crate) after: Duration,
    pub(crate) gives: Gives,
}

#[derive(Clone, Debug)]
pub(crate) enum Gives {
    Nothing,
    Panic,
    Response { status: u16, body: Reply },
}

/// The body of a response.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Empty,
    /// So many bytes, in memory.
    Whole(usize),
    Parts {
        /// When each is ready, since the head, and its bytes.
        chunks: Vec<(Duration, usize)>,
        ends: Duration,
        end: End,
        length: Length,
        /// Says that it is an event stream.
        events: bool,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    Quiet,
    Trailers,
    Error,
    Panic,
    Never,
}

/// What is said beforehand about the length of a body in parts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Length {
    Unknown,
    /// `content-length`: that of the chunks, and so many bytes more or fewer.
    Announced(i64),
    /// The body's own word: that of the chunks, and so many bytes that never come.
    Known(u64),
}

/// What the client does with the response.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// What it waits before it asks for a frame.
    pub(crate) pause: Duration,
    /// How many frames it asks for.
    pub(crate) frames: usize,
    /// When it leaves if it is not through by then, since the request began.
    pub(crate) leaves: Duration,
    pub(crate) finish: Finish,
}

/// What becomes of what the client does not want, the response or the wait for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Finish {
    Dropped,
    /// Dropped by another thread.
    DroppedElsewhere,
    /// Read by another thread as far as it is ready, and dropped there.
    ReadElsewhere,
}

/// Scripts of so many threads, with so many requests each.
pub(crate) fn scripts(
    threads: Range<usize>,
    requests: Range<usize>,
) -> impl Strategy<Value = Script> {
    vec(vec(scripted(), requests), threads)
}

fn scripted() -> impl Strategy<Value = Scripted> {
    let target = prop_oneof![
        4 => Just(Target::GetItem),
        1 => select(&Target::ALL[..]),
    ];
    (target, millis(0..60), any::<bool>(), prop::bool::weighted(0.3), answer(), client()).prop_map(
        |(target, starts, paired, passes, answer, client)| Scripted {
            target,
            starts,
            paired,
            passes,
            answer,
            client,
        },
    )
}

fn answer() -> impl Strategy<Value = Answer> {
    let status = prop_oneof![
        5 => Just(200),
        5 => select(&[201, 204, 302, 304, 400, 404, 429, 500, 503][..]),
    ];
    let gives = prop_oneof![
        1 => Just(Gives::Nothing),
        1 => Just(Gives::Panic),
        12 => (status, reply()).prop_map(|(status, body)| Gives::Response { status, body }),
    ];
    (delay(), gives).prop_map(|(after, gives)| Answer { after, gives })
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        1 => Just(Reply::Empty),
        2 => (0_usize..500).prop_map(Reply::Whole),
        6 => parts(),
    ]
}

fn parts() -> impl Strategy<Value = Reply> {
    let end = prop_oneof![
        4 => Just(End::Quiet),
        4 => select(&[End::Trailers, End::Error, End::Panic, End::Never][..]),
    ];
    let length = prop_oneof![
        3 => Just(Length::Unknown),
        2 => prop_oneof![Just(0), -300_i64..300].prop_map(Length::Announced),
        2 => prop_oneof![Just(0), 0_u64..300].prop_map(Length::Known),
    ];
    let chunks = vec((delay(), 0_usize..200), 0..4);
    (chunks, delay(), end, length, prop::bool::weighted(0.3)).prop_map(
        |(mut chunks, ends, end, length, events)| {
            let mut now = Duration::ZERO;
            for (at, _) in &mut chunks {
                now += *at;
                *at = now;
            }
            Reply::Parts { chunks, ends: now + ends, end, length, events }
        },
    )
}

fn client() -> impl Strategy<Value = Client> {
    let frames = prop_oneof![3 => Just(usize::MAX), 1 => 0_usize..3];
    let leaves = prop_oneof![
        3 => Just(PATIENCE),
        1 => millis(0..50).prop_map(|even| even + Duration::from_millis(1)),
    ];
    let finish = select(&[Finish::Dropped, Finish::DroppedElsewhere, Finish::ReadElsewhere][..]);
    (delay(), frames, leaves, finish).prop_map(|(pause, frames, leaves, finish)| Client {
        pause,
        frames,
        leaves,
        finish,
    })
}

/// Often none, mostly short, and seldom longer than histograms can tell.
fn delay() -> impl Strategy<Value = Duration> {
    prop_oneof![
        8 => Just(Duration::ZERO),
        8 => millis(1..15),
        2 => millis(1..5_000),
        1 => Just(Duration::from_secs(2 * 3600)),
    ]
}

/// Twice as many milliseconds.
fn millis(half: Range<u64>) -> impl Strategy<Value = Duration> {
    half.prop_map(|half| Duration::from_millis(2 * half))
}
