//! Every order in which shards, the connection's task, the client and an end can take their steps, with the very outbox that
//! connections have: whatever the order, all that was queued is written, whole, once and in its order, and nothing after an end.

use std::{
    pin::pin,
    sync::atomic::AtomicBool,
    task::{Wake, Waker},
};

use super::*;

/// A socket with little room.
#[derive(Debug)]
struct Pipe(Mutex<PipeState>);

#[derive(Debug)]
struct PipeState {
    got: Vec<u8>,
    room: usize,
    /// As the runtime knows it: until a write finds that there is no room.
    writable: bool,
    waker: Option<Waker>,
}

impl Pipe {
    fn new(room: usize) -> Self {
        Self(Mutex::new(PipeState { got: Vec::new(), room, writable: true, waker: None }))
    }

    /// The client reads.
    fn read(&self, bytes: usize) {
        let mut state = self.0.lock().unwrap();
        state.room += bytes;
        state.writable = true;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

impl RawSocket for Pipe {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.0.lock().unwrap();
        if state.room == 0 {
            state.writable = false;
        }
        if !state.writable {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let before = state.got.len();
        for byte in slices.iter().flat_map(|slice| slice.iter()) {
            if state.room > 0 {
                state.got.push(*byte);
                state.room -= 1;
            }
        }
        Ok(state.got.len() - before)
    }

    fn try_flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock().unwrap();
        if state.writable {
            return Poll::Ready(Ok(()));
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Goes through all choices, the last one first.
#[derive(Default)]
struct Choices {
    made: Vec<(usize, usize)>,
    at: usize,
}

impl Choices {
    fn choose(&mut self, among: usize) -> usize {
        if self.at == self.made.len() {
            self.made.push((0, among));
        }
        let (choice, before) = self.made[self.at];
        assert_eq!(before, among, "the same choices lead to the same place");
        self.at += 1;
        choice
    }

    /// Whether there is another way.
    fn next(&mut self) -> bool {
        self.at = 0;
        while let Some((choice, among)) = self.made.pop() {
            if choice + 1 < among {
                self.made.push((choice + 1, among));
                return true;
            }
        }
        false
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Append(usize),
    Flush(usize),
    Read,
    Poll,
    Cut,
    Close,
}

struct Scene {
    /// How many frames each shard has.
    shards: &'static [usize],
    end: Option<Step>,
    limit_bytes: usize,
    /// A shard that does not write what it was the first to queue.
    forgets: bool,
}

/// Bytes that the client reads at a time, and for which the socket has room at first.
const READS: usize = 5;

fn told(shard: usize, number: usize) -> Frame {
    Frame::text(&format!("{shard}{number}"))
}

fn last() -> Frame {
    Frame::text("z")
}

fn bye() -> Frame {
    Frame::text("bye")
}

/// One order. What the client got, as texts, and how many frames of each shard were queued before the end.
fn play(scene: &Scene, choices: &mut Choices) -> Result<(Vec<String>, Vec<usize>), String> {
    let outbox = Arc::new(Outbox::new(1, scene.limit_bytes, Ledger::new(1 << 30)));
    let pipe = Arc::new(Pipe::new(READS));
    outbox.attach(pipe.clone());
    let owner = async {
        let closing = loop {
            outbox.ready().await;
            match outbox.write(&*pipe, Duration::from_secs(3_600)).await {
                Ok(Written { closing: None, .. }) => {}
                Ok(Written { closing: Some(closing), .. }) => break closing,
                Err(error) => panic!("{error:?}"),
            }
        };
        outbox.last([bye()], closing);
        outbox.write(&*pipe, Duration::from_secs(3_600)).await.unwrap();
    };
    let (mut owner, woken) = (pin!(owner), Arc::new(Woken::default()));
    let waker = Waker::from(woken.clone());
    let mut over = owner.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
    let (mut appended, mut taken) = (vec![0; scene.shards.len()], vec![0; scene.shards.len()]);
    let mut unwritten = vec![false; scene.shards.len()];
    let mut end = scene.end;
    loop {
        let mut steps: Vec<Step> = Vec::new();
        for (shard, frames) in scene.shards.iter().enumerate() {
            steps.extend((appended[shard] < *frames).then_some(Step::Append(shard)));
            steps.extend(unwritten[shard].then_some(Step::Flush(shard)));
        }
        steps.extend((woken.0.load(Ordering::Relaxed) && !over).then_some(Step::Poll));
        steps.extend(end);
        // The client reads at any time where that makes a difference, and in the end all.
        steps.extend((steps.is_empty() || pipe.0.lock().unwrap().room < READS).then_some(Step::Read));
        if steps == [Step::Read] && (over || pipe.0.lock().unwrap().room >= READS) {
            break;
        }
        match steps[choices.choose(steps.len())] {
            Step::Append(shard) => {
                appended[shard] += 1;
                match outbox.append(told(shard, appended[shard])) {
                    Queued::First => unwritten[shard] |= !scene.forgets,
                    Queued::Later => {}
                    Queued::Ended => continue,
                    Queued::Full => panic!("only what is offered may find no room"),
                }
                taken[shard] += 1;
            }
            Step::Flush(shard) => {
                unwritten[shard] = false;
                outbox.flush();
            }
            Step::Read => pipe.read(READS),
            Step::Poll => {
                woken.0.store(false, Ordering::Relaxed);
                over = owner.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
            }
            Step::Cut => {
                end = None;
                outbox.cut_with(last(), Closing::new(Reason::Displaced));
            }
            Step::Close => {
                end = None;
                outbox.close(Closing::new(Reason::Idle));
            }
        }
    }
    if outbox.is_closing() != over {
        return Err("the end is not told".to_owned());
    }
    let got = std::mem::take(&mut pipe.0.lock().unwrap().got);
    Ok((texts(&got)?, taken))
}

fn texts(mut bytes: &[u8]) -> Result<Vec<String>, String> {
    let mut texts = Vec::new();
    while let [first, length, rest @ ..] = bytes {
        let length = usize::from(*length);
        if *first != 0x81 || length > rest.len() {
            return Err(format!("no frame begins at {bytes:?} after {texts:?}"));
        }
        texts.push(String::from_utf8(rest[..length].to_vec()).unwrap());
        bytes = &rest[length..];
    }
    if bytes.is_empty() { Ok(texts) } else { Err(format!("half a frame is left: {bytes:?}")) }
}

fn judge(scene: &Scene, got: &[String], taken: &[usize]) -> Result<(), String> {
    let is_over = got.last().is_some_and(|text| text == "bye");
    let overflowed = is_over && scene.limit_bytes < WIDE;
    let end: &[&str] = match scene.end {
        Some(Step::Cut) => &["z", "bye"],
        Some(_) => &["bye"],
        None if overflowed => &["bye"],
        None => &[],
    };
    let (before, after) = got.split_at(got.len() - end.len().min(got.len()));
    if after != end || before.iter().any(|text| text == "z" || text == "bye") {
        return Err(format!("{got:?} does not end as it is to"));
    }
    for (shard, count) in taken.iter().enumerate() {
        let of_shard: Vec<_> = got.iter().filter(|text| text.starts_with(&shard.to_string())).cloned().collect();
        let wanted: Vec<_> = (1..=*count).map(|number| format!("{shard}{number}")).collect();
        let dropped = overflowed || scene.end == Some(Step::Cut);
        let right = if dropped { wanted.starts_with(&of_shard) } else { wanted == of_shard };
        if !right {
            return Err(format!("{of_shard:?} of {wanted:?} came"));
        }
    }
    Ok(())
}

/// How many orders there are, up to the first that is wrong.
fn explore(scene: &Scene) -> (u32, Result<(), String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = runtime.enter();
    let (mut choices, mut orders) = (Choices::default(), 0);
    loop {
        orders += 1;
        let right = play(scene, &mut choices).and_then(|(got, taken)| judge(scene, &got, &taken));
        if right.is_err() || !choices.next() {
            return (orders, right);
        }
    }
}

const WIDE: usize = 1_000;

#[test]
fn whatever_the_order_all_is_written_once_and_whole() {
    let scene = |shards, end, limit_bytes| Scene { shards, end, limit_bytes, forgets: false };
    let scenes = [
        scene(&[6], None, WIDE),
        scene(&[3, 2], None, WIDE),
        scene(&[3], Some(Step::Cut), WIDE),
        scene(&[2, 1], Some(Step::Cut), WIDE),
        scene(&[2, 1], Some(Step::Close), WIDE),
        // Room for two frames.
        scene(&[3, 2], None, 8),
    ];
    for (at, scene) in scenes.iter().enumerate() {
        let (orders, right) = explore(scene);
        println!("scene {at}: {orders} orders");
        assert_eq!(right, Ok(()), "scene {at}, order {orders}");
        assert!(orders > 50, "{orders} orders");
    }
}

#[test]
fn what_is_not_written_in_some_order_is_found() {
    let scene = Scene { shards: &[2, 1], end: None, limit_bytes: WIDE, forgets: true };
    assert!(explore(&scene).1.is_err());
}
