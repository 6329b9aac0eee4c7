//! QEMU's monitor: its commands as a person types them (`stop`, `cont`,
//! `system_reset`, `info mtree`), carried by QMP, which tells where an answer
//! ends (QEMU's docs/interop/qmp-spec).
//!
//! Law: a QEMU that does not answer is an error in time.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::agent::{Alive, STEP, is_timeout, wait_on};

/// Where it listens.
#[derive(Clone, Debug)]
pub(crate) struct Monitor {
    pub socket: PathBuf,
}

impl Monitor {
    /// Runs one command and returns what it prints.
    pub(crate) fn ask(
        &self,
        line: &str,
        deadline: Instant,
        alive: &mut dyn Alive,
    ) -> Result<String> {
        let stream = UnixStream::connect(&self.socket);
        let stream = stream.with_context(|| format!("connect to {}", self.socket.display()))?;
        let mut talk = Talk::new(stream)?;
        talk.command("qmp_capabilities", json!({}), deadline, alive)?;
        let arguments = json!({ "command-line": line });
        match talk.command("human-monitor-command", arguments, deadline, alive)? {
            Value::String(said) => Ok(said.replace('\r', "")),
            other => bail!("the monitor answers {line:?} with {other}"),
        }
    }
}

struct Talk {
    reader: BufReader<UnixStream>,
}

impl Talk {
    fn new(stream: UnixStream) -> Result<Talk> {
        stream.set_read_timeout(Some(STEP))?;
        stream.set_write_timeout(Some(STEP))?;
        let reader = BufReader::new(stream);
        Ok(Talk { reader })
    }

    fn command(
        &mut self,
        name: &str,
        arguments: Value,
        deadline: Instant,
        alive: &mut dyn Alive,
    ) -> Result<Value> {
        let message = json!({ "execute": name, "arguments": arguments, "id": name });
        let mut stream = self.reader.get_ref();
        stream
            .write_all(format!("{message}\n").as_bytes())
            .context("send to the monitor")?;
        loop {
            let mut answer = self.message(deadline, alive)?;
            // What comes without our id is the greeting or an event.
            if answer.get("id").and_then(Value::as_str) != Some(name) {
                continue;
            }
            return match answer.get_mut("return") {
                Some(value) => Ok(value.take()),
                None => bail!("the monitor refuses {name}: {answer}"),
            };
        }
    }

    fn message(&mut self, deadline: Instant, alive: &mut dyn Alive) -> Result<Value> {
        let mut line = Vec::new();
        loop {
            match self.reader.read_until(b'\n', &mut line) {
                Ok(0) => bail!("the monitor closed"),
                Ok(_) if line.ends_with(b"\n") => {
                    return serde_json::from_slice(&line).context("an answer of the monitor");
                }
                Ok(_) => {}
                // What has come so far stays in `line`.
                Err(e) if is_timeout(&e) => wait_on(deadline, alive)?,
                Err(e) => return Err(e).context("read from the monitor"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    /// A monitor that greets, and answers each command with the next text.
    fn pretender(listener: &UnixListener, answers: &[&str]) {
        let (stream, _) = listener.accept().expect("connected");
        let mut writer = stream.try_clone().expect("cloned");
        writeln!(writer, "{{\"QMP\": {{}}}}").expect("written");
        let mut lines = BufReader::new(stream).lines();
        for answer in answers {
            let line = lines.next().expect("a command").expect("readable");
            let message: Value = serde_json::from_str(&line).expect("json");
            let id = &message["id"];
            writeln!(writer, "{}", answer.replace("ID", &id.to_string())).expect("written");
        }
        // Until the other side has had enough.
        let _ = lines.next();
    }

    fn ask(answers: &[&str], limit: Duration) -> Result<String> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("monitor");
        let listener = UnixListener::bind(&socket)?;
        std::thread::scope(|scope| {
            scope.spawn(|| pretender(&listener, answers));
            Monitor { socket }.ask("info x", Instant::now() + limit, &mut || true)
        })
    }

    #[test]
    fn an_answer_is_told_from_events() {
        let answers = [
            r#"{"return": {}, "id": ID}"#,
            "{\"event\": \"STOP\"}\n{\"return\": \"a\\r\\nb\", \"id\": ID}",
        ];
        let said = ask(&answers, Duration::from_secs(10)).expect("answered");
        assert_eq!(said, "a\nb");
    }

    #[test]
    fn a_refusal_and_silence_are_errors() {
        let refusal = [r#"{"error": {"desc": "no"}, "id": ID}"#];
        let error = ask(&refusal, Duration::from_secs(10)).expect_err("refused");
        assert!(error.to_string().contains("refuses"), "{error:#}");
        let silence = [r#"{"return": {}, "id": ID}"#];
        assert!(ask(&silence, Duration::from_millis(50)).is_err());
    }
}
