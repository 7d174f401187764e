//! The history of published checkpoints as it is served.

use epigraph_core::checkpoint::encode_text;
use epigraph_core::{Hash, KeyName, SigningKey, TreeHead, note};
use epigraph_sequencer::log::{ListError, Log};
use epigraph_store::file::memory::MemoryDir;
use zeroize::Zeroizing;

use crate::support::*;

fn head(leaves: u64) -> TreeHead {
    TreeHead { size: size(leaves), root: Hash::from_bytes([leaves as u8; 32]) }
}

/// A log with the checkpoints of these sizes in its history.
async fn with_history(sizes: impl IntoIterator<Item = u64>) -> Running {
    let running = create(&MemoryDir::new(), Options::default());
    for leaves in sizes {
        running.history.append(size(leaves), signed(head(leaves)).note()).unwrap();
    }
    running
}

/// All pages of so many, from a size on.
async fn all(log: &Log, min_size: u64, most: u32) -> Vec<u64> {
    let (mut sizes, mut token) = (Vec::new(), String::new());
    loop {
        let page = log.list_checkpoints(size(min_size), most, &token).await.unwrap();
        assert!(page.checkpoints.len() <= most as usize);
        sizes.extend(page.checkpoints.iter().map(|checkpoint| checkpoint.head().size.get()));
        match page.next {
            Some(next) => token = next,
            None => return sizes,
        }
    }
}

#[tokio::test]
async fn every_kept_checkpoint_is_on_one_page_whatever_their_size() {
    let running = with_history(1..=23).await;
    for most in [1, 2, 7, 22, 23, 24, 1_000] {
        for min_size in [0, 1, 2, 20, 23] {
            let expected: Vec<_> = (min_size.max(1)..=23).collect();
            assert_eq!(all(&running.log, min_size, most).await, expected, "{min_size}, {most}");
        }
        assert_eq!(all(&running.log, 24, most).await, [0; 0]);
    }
}

/// N6. Fails if a token is taken for what it says.
#[tokio::test]
async fn a_token_that_is_not_this_logs_answer_to_this_question_is_refused() {
    let running = with_history(1..=9).await;
    let token = running.log.list_checkpoints(size(2), 3, "").await.unwrap().next.unwrap();
    assert!(running.log.list_checkpoints(size(2), 3, &token).await.is_ok());
    let (next, check) = token.split_once('.').unwrap();
    let other = running.log.list_checkpoints(size(3), 3, &token).await;
    assert_eq!(other, Err(ListError::Token));
    for forged in [
        next,
        check,
        ".",
        "0.",
        &format!("+{token}"),
        &format!("0{token}"),
        &format!("{token} "),
        &format!("7.{check}"),
        &format!("18446744073709551616.{check}"),
        &"9".repeat(100_000),
    ] {
        assert_eq!(running.log.list_checkpoints(size(2), 3, forged).await, Err(ListError::Token));
    }
}

/// B5, T2. Fails if what the history gives is not opened again under the policy.
#[tokio::test]
async fn a_note_that_is_not_the_logs_or_not_of_its_size_is_never_served() {
    let running = with_history([1]).await;
    let other = |name: &str, seed| {
        let key = SigningKey::from_seed(KeyName::new(name).unwrap(), &Zeroizing::new([seed; 32]));
        let text = encode_text(&key.vkey().name().to_origin(), &head(2));
        note::encode(&text, [&key.sign_assertion(&text)])
    };
    running.history.append(size(2), other("log.example", 8).as_bytes()).unwrap();
    running.history.append(size(3), other("other.example", 7).as_bytes()).unwrap();
    running.history.append(size(4), b"garbage").unwrap();
    running.history.append(size(5), signed(head(6)).note()).unwrap();
    running.history.append(size(7), signed(head(7)).note()).unwrap();
    assert_eq!(all(&running.log, 0, 1).await, [1, 7]);
    assert_eq!(all(&running.log, 0, 100).await, [1, 7]);
}
