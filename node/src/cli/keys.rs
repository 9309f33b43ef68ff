//! `roost keys`: the file with the keys that sign session tokens.

use std::path::PathBuf;

use anyhow::bail;
use clap::Subcommand;

use super::print;
use crate::token::Keyring;

/// Commands of `roost keys`.
#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Make a keyring, or with --rotate add a new signing key to one
    New {
        /// The keyring
        #[arg(long, default_value = "keyring.toml")]
        file: PathBuf,
        /// A new key signs from now on, the old ones go on verifying
        #[arg(long)]
        rotate: bool,
    },
    /// List the ids of the keys; never the keys
    List {
        /// The keyring
        #[arg(long, default_value = "keyring.toml")]
        file: PathBuf,
    },
}

pub(super) fn run(command: KeysCommand) -> anyhow::Result<()> {
    match command {
        KeysCommand::New { file, rotate: false } => {
            if file.exists() {
                bail!(
                    "{} is there already: --rotate adds a new key to it, another --file makes another keyring",
                    file.display()
                );
            }
            let keyring = Keyring::generate();
            keyring.save(&file)?;
            print::line(format_args!("{}: made, key {} signs", file.display(), keyring.signing()))?;
            print::note(format_args!(
                "copy it to every node (`auth.keyring`), and keep it secret: who has it can make sessions' tokens"
            ));
        }
        KeysCommand::New { file, rotate: true } => {
            let mut keyring = Keyring::load(&file)?;
            let before = keyring.signing().to_owned();
            let now = keyring.rotate().to_owned();
            keyring.save(&file)?;
            print::line(format_args!("{}: key {now} signs, {before} goes on verifying", file.display()))?;
            print::note(format_args!(
                "copy it to every node before the first of them uses it: the others would refuse its tokens"
            ));
        }
        KeysCommand::List { file } => {
            let keyring = Keyring::load(&file)?;
            for kid in keyring.kids() {
                let part = if kid == keyring.signing() { "signs and verifies" } else { "verifies" };
                print::line(format_args!("{kid:<32} {part}"))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyring_is_made_once_and_rotated_often() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keyring.toml");
        let new = |rotate| run(KeysCommand::New { file: file.clone(), rotate });
        assert!(new(true).is_err(), "there is nothing to rotate yet");
        new(false).unwrap();
        let first = Keyring::load(&file).unwrap().signing().to_owned();
        assert!(new(false).is_err(), "a keyring is never overwritten");
        new(true).unwrap();
        let rotated = Keyring::load(&file).unwrap();
        assert_eq!(rotated.kids().count(), 2);
        assert_ne!(rotated.signing(), first);
        run(KeysCommand::List { file }).unwrap();
    }
}
