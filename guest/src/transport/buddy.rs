//! Which pages of guest memory are taken: a buddy allocator over page
//! numbers, with a short list of just-freed blocks per size in front.
//!
//! Law: a block handed out overlaps no other block handed out, and is aligned
//! to its own size. Pure bookkeeping; it touches no memory.

/// Bytes of the smallest block.
pub(super) const PAGE_BYTES: usize = 4096;
/// Freed blocks of one size kept unmerged, so that a caller who allocates and
/// frees in a loop neither splits nor merges.
const QUICK_BLOCKS: usize = 16;
const NONE: u32 = u32::MAX;
const TAKEN: u8 = u8::MAX;

/// A block: its first page and the logarithm to base 2 of its page count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) page: u32,
    pub(super) order: u8,
}

/// The allocator.
pub(super) struct Buddy {
    /// First free block of each order.
    heads: Vec<u32>,
    /// Links of the free lists, by first page of a free block.
    next: Vec<u32>,
    prev: Vec<u32>,
    /// Order of the free block that starts at a page; `TAKEN` elsewhere.
    order_at: Vec<u8>,
    quick: Vec<Vec<u32>>,
}

impl Buddy {
    /// All `pages` are free.
    pub(super) fn new(pages: u32) -> Buddy {
        let orders = (pages.max(1).ilog2() + 1) as usize;
        let mut buddy = Buddy {
            heads: vec![NONE; orders],
            next: vec![NONE; pages as usize],
            prev: vec![NONE; pages as usize],
            order_at: vec![TAKEN; pages as usize],
            quick: (0..orders)
                .map(|_| Vec::with_capacity(QUICK_BLOCKS))
                .collect(),
        };
        buddy.seed(pages);
        buddy
    }

    /// Cuts the range into the largest aligned blocks that fit.
    fn seed(&mut self, pages: u32) {
        let mut page = 0;
        while page < pages {
            let fits = (pages - page).ilog2();
            let aligned = if page == 0 {
                fits
            } else {
                page.trailing_zeros()
            };
            let order = fits.min(aligned) as u8;
            self.link(Block { page, order });
            page += 1 << order;
        }
    }

    /// The order whose blocks hold `bytes`.
    pub(super) fn order_of(bytes: usize) -> u8 {
        let pages = bytes.div_ceil(PAGE_BYTES).max(1);
        pages.next_power_of_two().ilog2() as u8
    }

    /// Takes a block of `order`, or `None` if there is none.
    pub(super) fn alloc(&mut self, order: u8) -> Option<Block> {
        if let Some(page) = self.quick.get_mut(usize::from(order))?.pop() {
            return Some(Block { page, order });
        }
        self.split_to(order).or_else(|| {
            self.merge_quick();
            self.split_to(order)
        })
    }

    /// Gives a block back that `alloc` handed out.
    pub(super) fn free(&mut self, block: Block) {
        let quick = &mut self.quick[usize::from(block.order)];
        if quick.len() < QUICK_BLOCKS {
            quick.push(block.page);
        } else {
            self.merge(block);
        }
    }

    fn split_to(&mut self, order: u8) -> Option<Block> {
        let from = (usize::from(order)..self.heads.len()).find(|&o| self.heads[o] != NONE)?;
        let page = self.heads[from];
        self.unlink(Block {
            page,
            order: from as u8,
        });
        for upper in (order..from as u8).rev() {
            self.link(Block {
                page: page + (1 << upper),
                order: upper,
            });
        }
        Some(Block { page, order })
    }

    fn merge_quick(&mut self) {
        for order in 0..self.quick.len() {
            while let Some(page) = self.quick[order].pop() {
                self.merge(Block {
                    page,
                    order: order as u8,
                });
            }
        }
    }

    fn merge(&mut self, mut block: Block) {
        while usize::from(block.order) + 1 < self.heads.len() {
            let buddy = Block {
                page: block.page ^ (1 << block.order),
                order: block.order,
            };
            if self.order_at.get(buddy.page as usize) != Some(&buddy.order) {
                break;
            }
            self.unlink(buddy);
            block = Block {
                page: block.page.min(buddy.page),
                order: block.order + 1,
            };
        }
        self.link(block);
    }

    fn link(&mut self, block: Block) {
        let page = block.page as usize;
        let head = &mut self.heads[usize::from(block.order)];
        let old = std::mem::replace(head, block.page);
        self.next[page] = old;
        self.prev[page] = NONE;
        self.order_at[page] = block.order;
        if old != NONE {
            self.prev[old as usize] = block.page;
        }
    }

    fn unlink(&mut self, block: Block) {
        let page = block.page as usize;
        let (next, prev) = (self.next[page], self.prev[page]);
        self.order_at[page] = TAKEN;
        if next != NONE {
            self.prev[next as usize] = prev;
        }
        if prev == NONE {
            self.heads[usize::from(block.order)] = next;
        } else {
            self.next[prev as usize] = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_comes_back(
            pages in 1u32..300,
            steps in proptest::collection::vec((0u8..6, any::<prop::sample::Index>()), 1..200),
        ) {
            let mut buddy = Buddy::new(pages);
            let mut taken = vec![false; pages as usize];
            let mut held: Vec<Block> = Vec::new();
            for (order, pick) in steps {
                if order == 5 && !held.is_empty() {
                    let block = held.swap_remove(pick.index(held.len()));
                    let range = block.page as usize..(block.page + (1 << block.order)) as usize;
                    taken[range].fill(false);
                    buddy.free(block);
                } else if let Some(block) = buddy.alloc(order) {
                    prop_assert_eq!(block.page % (1 << block.order), 0);
                    for page in block.page..block.page + (1 << block.order) {
                        prop_assert!(!std::mem::replace(&mut taken[page as usize], true));
                    }
                    held.push(block);
                }
            }
            for block in held { buddy.free(block); }
            prop_assert!(buddy.alloc(pages.ilog2() as u8).is_some());
        }
    }

    #[test]
    fn sizes_round_up_to_a_power_of_two_of_pages() {
        assert_eq!(Buddy::order_of(0), 0);
        assert_eq!(Buddy::order_of(4096), 0);
        assert_eq!(Buddy::order_of(4097), 1);
        assert_eq!(Buddy::order_of(3 << 20), 10);
        assert_eq!(Buddy::new(4).alloc(20), None);
    }
}
