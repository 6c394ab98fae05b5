-- nbdev makes links of names in backticks also where none can be: within code, and to private names, which no page shows.
-- The code it writes itself is a signature: styles.css wraps it.
function CodeBlock(o)
  o.text = o.text:gsub('%[(`[^`]+`)%]%(https?://[^)]+%)', '%1')
  if o.text:match('^def ') and not o.classes:includes('cell-code') then o.classes:insert('signature') end
  return o
end

function Link(o)
  if o.target:match('%.html#_') then return o.content end
end

-- A mean and its interval stay in one line, in text, in tables, and in tables that pandas wrote.
function Inlines(l)
  for i = 2, #l - 1 do
    if l[i].t == 'Str' and l[i].text == '±' then
      for j = i - 1, i + 1, 2 do if l[j].t:match('Space') or l[j].t == 'SoftBreak' then l[j] = pandoc.Str('\u{a0}') end end
    end
  end
  return l
end

function RawBlock(o)
  if o.format:match('html') then o.text = o.text:gsub(' ± ', '&nbsp;±&nbsp;'); return o end
end
