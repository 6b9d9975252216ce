-- owned(entries, consumer): the set of these entries that are pending for this very consumer.
--
-- The fence. XACK does not ask who owns an entry, and after a failover the new primary may hand
-- out the same entry id again; a consumer's name is unique per process start, so "pending for
-- me" is the one question that a late or forked worker cannot answer with yes.
--
-- Entries come in the order of delivery, so one range read answers for nearly all of them.
-- That order is only a hint (ids may step back after a failover): whatever the range did not
-- show is asked for by itself, and the answer never depends on the hint.
local function owned(entries, consumer)
  local mine, n = {}, #entries
  if n > 2 then
    local page = pending(entries[1], entries[n], 2 * n + 64, consumer)
    for i = 1, #page do mine[page[i][1]] = true end
  end
  for i = 1, n do
    local entry = entries[i]
    if not mine[entry] and #pending(entry, entry, 1, consumer) == 1 then mine[entry] = true end
  end
  return mine
end
