//! The thread on which the indexes are opened and filled, one job after the other. It is their own, so that the system can be told to let
//! everybody else go first; it does not know what a job does.

use std::io;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// The thread has ended in the middle of a job.
pub(super) struct Gone;

/// Hands jobs to the thread. Dropped, it waits until the one that is under way is done: what it uses is let go of.
pub(super) struct Worker {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread, which does `first` before anything else.
    pub(super) fn start(first: fn()) -> io::Result<Worker> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let thread = thread::Builder::new().name("index".into()).spawn(move || {
            first();
            inbox.iter().for_each(|job| job());
        })?;
        Ok(Worker { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Does something there.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Gone> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || {
            let _ = answer.send(work());
        });
        self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or(Gone)?;
        answered.await.map_err(|_| Gone)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // One that has panicked has said so.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    // Broken to see it fail: the thread not joined.
    #[tokio::test]
    async fn whoever_lets_go_of_the_thread_waits_until_its_job_is_done() {
        let worker = Worker::start(|| ()).unwrap();
        assert_eq!(
            worker.run(|| thread::current().name().map(str::to_owned)).await.ok().flatten().as_deref(),
            Some("index")
        );
        let done = Arc::new(AtomicBool::new(false));
        let (is_done, (release, released)) = (Arc::clone(&done), mpsc::channel::<()>());
        let job = worker.run(move || {
            released.recv().unwrap();
            is_done.store(true, Ordering::SeqCst);
        });
        tokio::select! {
            biased;
            _ = job => panic!("it waits"),
            () = async {} => {}
        }
        thread::spawn(move || release.send(()).unwrap());
        drop(worker);
        assert!(done.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_job_that_panics_is_told_and_so_is_every_one_after_it() {
        let worker = Worker::start(|| ()).unwrap();
        assert!(worker.run(|| panic!("as the library does over pages that were changed")).await.is_err());
        assert!(worker.run(|| ()).await.is_err());
    }
}
