//! Reading the configuration again on SIGHUP, while the command runs. What can change is up to the command; here it is
//! said which settings have, and which wait for a restart. A mistake leaves everything as it was.

use std::future::Future;
use std::io;

use futures_util::{Stream, StreamExt, stream};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::{RunError, log, manager};
use crate::config::Config;

/// The SIGHUPs of this process, from now on: the default action, to die, is off once this has returned.
///
/// # Errors
///
/// The system does not let us register for them.
pub fn hangups() -> io::Result<impl Stream<Item = ()> + Send + 'static> {
    let source = signal(SignalKind::hangup())?;
    Ok(stream::unfold(source, |mut source| async move { source.recv().await.map(|()| ((), source)) }))
}

/// [`hangups`], with the error of a command.
///
/// # Errors
///
/// As [`hangups`].
pub fn signals() -> Result<impl Stream<Item = ()> + Send + 'static, RunError> {
    hangups().map_err(|source| RunError::System { what: "cannot wait for signals", source })
}

/// Reads the configuration at each signal. `running` is the one in effect; `apply` puts the settings that can change while
/// the command runs from the new one into effect, and into it. `foreign` are sections that mean nothing to the command.
pub fn follow(
    hangups: impl Stream<Item = ()>,
    read: impl Fn() -> Result<Config, RunError>,
    mut running: Config,
    foreign: &'static [&'static str],
    mut apply: impl FnMut(&mut Config, &Config),
) -> impl Future<Output = ()> {
    hangups.for_each(move |()| {
        manager::reloading();
        match read() {
            Ok(new) => {
                let different = differences(&running, &new, foreign);
                if running.log.filter != new.log.filter && log::set_filter(&new.log.filter) {
                    running.log.filter = new.log.filter.clone();
                }
                apply(&mut running, &new);
                let waiting = differences(&running, &new, foreign);
                for setting in &different {
                    // Values stay out: an address may hold a password, and lists are long.
                    if waiting.contains(setting) {
                        tracing::warn!(setting, "needs a restart");
                    } else {
                        tracing::info!(setting, "changed");
                    }
                }
                tracing::info!(different = different.len(), "the configuration was read again");
            }
            Err(error) => tracing::error!(%error, "the configuration is wrong; that of before stays"),
        }
        manager::reloaded();
        std::future::ready(())
    })
}

/// The settings in which two configurations differ, dotted. Lists are compared as wholes.
fn differences(old: &Config, new: &Config, foreign: &[&str]) -> Vec<String> {
    let mut different = Vec::new();
    // What cannot be written, which does not happen, is no difference.
    if let (Ok(old), Ok(new)) = (serde_json::to_value(old), serde_json::to_value(new)) {
        compare("", &old, &new, &mut different);
    }
    different.retain(|setting| !foreign.contains(&setting.split('.').next().unwrap_or_default()));
    different
}

fn compare(name: &str, old: &Value, new: &Value, different: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(before), Value::Object(after)) => {
            let added = after.keys().filter(|key| !before.contains_key(*key));
            for key in before.keys().chain(added) {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                compare(&name, &of(before), &of(after), different);
            }
        }
        _ if old != new => different.push(name.to_owned()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_configuration_that_is_wrong_changes_nothing() {
        let (reads, applied) = (Cell::new(0), Cell::new(0));
        let read = || {
            reads.set(reads.get() + 1);
            if reads.get() == 2 { Err(RunError::Usage("wrong".to_owned())) } else { Ok(Config::default()) }
        };
        let apply = |_: &mut Config, _: &Config| applied.set(applied.get() + 1);
        follow(stream::iter([(), (), ()]), read, Config::default(), &[], apply).await;
        assert_eq!((reads.get(), applied.get()), (3, 2));
    }

    #[test]
    fn each_setting_that_differs_is_named_once_and_those_of_other_commands_are_not() {
        let old = Config::default();
        let mut new = old.clone();
        assert!(differences(&old, &new, &[]).is_empty());
        new.exit.service.insert(80, "127.0.0.1:3000".parse::<crate::config::Target>().unwrap().into());
        new.exit.allow = Some(std::iter::empty().collect());
        new.proxy.isolate_destinations = true;
        new.limits.dial_timeout += Duration::from_secs(1);
        let all = ["exit.allow", "exit.service.80", "limits.dial_timeout", "proxy.isolate_destinations"];
        let mut found = differences(&old, &new, &[]);
        found.sort();
        assert_eq!(found, all);
        assert_eq!(differences(&new, &old, &["exit", "limits"]), ["proxy.isolate_destinations"]);
    }
}
