//! What the job wrote: the lines looked at while it runs, all of it judged at the end.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{RecordBatch, StringArray, UInt64Array};
use pelton::env::Env;
use pelton::{Declaration, Local};
use serde::Deserialize;

use super::{counted, job};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: u64,
    text: String,
    score: u64,
}

/// The files of lines under final names that were seen so far, and their rows; and where the same rows are once more, as Parquet.
pub(crate) struct Output {
    folder: PathBuf,
    columns: PathBuf,
    /// Length in bytes.
    files: BTreeMap<PathBuf, u64>,
    rows: Vec<Row>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) wrong: u64,
}

impl Output {
    pub(crate) fn new(folder: &Path) -> Output {
        let (folder, columns) = (folder.join(job::LINES), folder.join(job::COLUMNS));
        Output { folder, columns, files: BTreeMap::new(), rows: Vec::new() }
    }

    pub(crate) fn files(&self) -> usize {
        self.files.len()
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Reads what is new. What has a final name is whole, and stays as it was.
    pub(crate) fn look(&mut self) -> Result<()> {
        for (path, bytes) in &self.files {
            let found =
                fs::metadata(path).with_context(|| format!("{} was there before", path.display()))?.len();
            if found != *bytes {
                bail!(
                    "{} had {bytes} bytes and now has {found}: it changed after it got its final name",
                    path.display()
                );
            }
        }
        if !self.folder.exists() {
            return Ok(());
        }
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.is_dir() || self.files.contains_key(&path) {
                continue;
            }
            let text = fs::read_to_string(&path)?;
            if !text.ends_with('\n') {
                bail!("{} has its final name and ends in the middle of a line", path.display());
            }
            for line in text.lines() {
                let row = serde_json::from_str(line);
                self.rows.push(row.with_context(|| format!("{} holds {line:?}", path.display()))?);
            }
            self.files.insert(path, text.len() as u64);
        }
        Ok(())
    }

    /// What is staged and has no final name.
    pub(crate) fn staged(&self) -> usize {
        let staged = |folder: &Path| fs::read_dir(folder.join("_staging")).map_or(0, Iterator::count);
        staged(&self.folder) + staged(&self.columns)
    }

    /// What is wrong at each sink.
    pub(crate) fn judge(&self, expected: &[u64]) -> Result<[(&'static str, Verdict); 2]> {
        Ok([("JSON lines", judge(&self.rows, expected)), ("Parquet", judge(&self.columns()?, expected))])
    }

    fn columns(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for batch in pelton::files::read_parquet(&self.columns, "part")? {
            let batch = batch?;
            let column = |name: &str| batch.column_by_name(name).with_context(|| format!("no column {name}"));
            let (ids, scores) = (column("id")?, column("score")?);
            let texts = column("text")?.as_string::<i32>();
            let (ids, scores) = (ids.as_primitive::<UInt64Type>(), scores.as_primitive::<UInt64Type>());
            rows.extend((0..batch.num_rows()).map(|i| Row {
                id: ids.value(i),
                text: texts.value(i).to_owned(),
                score: scores.value(i),
            }));
        }
        Ok(rows)
    }
}

/// Every row once, with the right answer?
fn judge(rows: &[Row], expected: &[u64]) -> Verdict {
    let mut times = vec![0u64; expected.len()];
    let mut verdict = Verdict::default();
    for row in rows {
        match times.get_mut(row.id as usize) {
            Some(times) if row.score == expected[row.id as usize] && row.text == job::text(row.id) => {
                *times += 1
            }
            _ => verdict.wrong += 1,
        }
    }
    verdict.lost = times.iter().filter(|n| **n == 0).count() as u64;
    verdict.duplicated = times.iter().map(|n| n.saturating_sub(1)).sum();
    verdict
}

/// The scores of all rows, from the scripted service in this process.
pub(crate) fn expected(env: &Env, rows: u64) -> Result<Vec<u64>> {
    let mut local = Local::open_with(env, Declaration::new("scorer"), counted::plain())?;
    let ids = UInt64Array::from_iter_values(0..rows);
    let texts = StringArray::from_iter_values((0..rows).map(job::text));
    let batch = RecordBatch::try_from_iter([("id", Arc::new(ids) as _), ("text", Arc::new(texts) as _)])?;
    let scores = local.call("score", batch)?;
    Ok(scores.column(0).as_primitive::<UInt64Type>().values().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found in files of these contents, or why looking fails.
    fn judged(rows: u64, files: &[String]) -> Result<Verdict> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join(job::LINES))?;
        for (i, content) in files.iter().enumerate() {
            fs::write(dir.path().join(job::LINES).join(format!("part-{i}.jsonl")), content)?;
        }
        let host = pelton::env::real::Host::new(1, 1)?;
        let mut output = Output::new(dir.path());
        output.look()?;
        Ok(judge(&output.rows, &expected(host.env(), rows)?))
    }

    fn line(id: u64) -> String {
        let host = pelton::env::real::Host::new(1, 1).unwrap();
        let score = expected(host.env(), id + 1).unwrap()[id as usize];
        format!("{}\n", serde_json::json!({ "id": id, "text": job::text(id), "score": score }))
    }

    #[test]
    fn each_fault_is_told_from_the_others() {
        let all = |ids: &[u64]| ids.iter().map(|id| line(*id)).collect::<String>();
        let verdict = |lost, duplicated, wrong| Verdict { lost, duplicated, wrong };
        assert_eq!(judged(3, &[all(&[0, 2]), all(&[1])]).unwrap(), verdict(0, 0, 0));
        assert_eq!(judged(3, &[all(&[0, 2])]).unwrap(), verdict(1, 0, 0));
        assert_eq!(judged(3, &[all(&[0, 1, 2]), all(&[1])]).unwrap(), verdict(0, 1, 0));
        assert_eq!(judged(3, &[all(&[0, 1, 2]).replace("row 1", "row 2")]).unwrap(), verdict(1, 0, 1));
        let half = all(&[0, 1]);
        assert!(judged(3, &[half[..half.len() - 3].to_owned()]).unwrap_err().to_string().contains("middle"));
    }
}
