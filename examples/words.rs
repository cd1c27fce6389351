//! The words that the example remembers.

/// Dimensions of a word.
pub const DIM: usize = 50;

/// The words and their vectors, most frequent first. The format is in `data/README.md`.
#[derive(Debug)]
pub struct Words {
    /// The words.
    pub words: Vec<&'static str>,
    /// Their vectors, one after the other.
    pub vectors: Vec<f32>,
}

impl Words {
    /// All of them, from the program itself.
    pub fn load() -> Self {
        let words = include_str!("data/words.txt").lines().collect();
        let mut vectors = Vec::new();
        for record in include_bytes!("data/words.i8").as_chunks::<{ 4 + DIM }>().0 {
            let [a, b, c, d, codes @ ..] = record;
            let scale = f32::from_le_bytes([*a, *b, *c, *d]);
            vectors.extend(codes.iter().map(|code| scale * f32::from(code.cast_signed())));
        }
        Self { words, vectors }
    }

    /// The vector of a word.
    pub fn vector(&self, id: usize) -> &[f32] {
        &self.vectors[id * DIM..(id + 1) * DIM]
    }
}
