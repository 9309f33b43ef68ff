//! Whose turn it is. The tests of one file may run beside each other; those of different files do not, since each loads the
//! machine and measures time, but for files whose tests mostly wait for their store.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Files that may have their turns together.
const WAITING: [&str; 4] = ["store_access", "store_cluster", "store_contract", "store_ephemeral"];

static TURNS: Mutex<Turns> = Mutex::new(Turns { file: "", inside: 0 });
static FREE: Condvar = Condvar::new();

struct Turns {
    /// Whose tests run, where any do.
    file: &'static str,
    inside: usize,
}

/// Held by a test while it runs.
#[must_use = "the turn ends when this is dropped"]
#[derive(Debug)]
pub struct Turn(());

/// Waits until no test of another file runs. `file` is the caller's `module_path!()`.
///
/// This blocks: it is a test's first line, before anything of it runs.
pub fn take(file: &'static str) -> Turn {
    let name = file.rsplit("::").next().unwrap_or(file);
    let file = if WAITING.contains(&name) { "waiting" } else { file };
    let mut turns = FREE
        .wait_while(turns(), |turns| turns.inside > 0 && turns.file != file)
        .unwrap_or_else(PoisonError::into_inner);
    turns.file = file;
    turns.inside += 1;
    Turn(())
}

impl Drop for Turn {
    fn drop(&mut self) {
        turns().inside -= 1;
        FREE.notify_all();
    }
}

fn turns() -> MutexGuard<'static, Turns> {
    TURNS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    #[test]
    fn one_file_at_a_time() {
        let (first, beside) = (take("a"), take("a"));
        let other = thread::spawn(|| drop(take("b")));
        drop(first);
        thread::sleep(Duration::from_millis(50));
        assert!(!other.is_finished(), "a test of another file began while one still ran");
        drop(beside);
        other.join().expect("it gets its turn");
    }

    #[test]
    fn those_that_wait_for_their_store_run_beside_each_other() {
        let first = take(WAITING[0]);
        for other in &WAITING[1..] {
            let (tell, told) = std::sync::mpsc::channel();
            thread::spawn(move || tell.send(take(other)));
            // One that has to wait for the first would do so for ever.
            drop(told.recv_timeout(Duration::from_secs(30)).expect("they have their turns together"));
        }
        drop(first);
    }
}
